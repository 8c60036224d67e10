"""One measurement: ``python -m runnel.bench.side JSON``. Prints its figures as JSON."""

import asyncio
import json
import sys

from runnel._worker import loop_factory, tune_collector
from runnel.bench import bare, ours
from runnel.bench.place import Place

__all__ = ["main"]


def main() -> None:
    """Run the function that the argument names."""
    task = json.loads(sys.argv[1])
    module, name = task["function"].split(".")
    function = getattr({"bare": bare, "ours": ours}[module], name)
    if "send" not in name and name != "pace":
        tune_collector()  # as `runnel worker` does, for both sides: the ratio is not to come from that
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        print(json.dumps(runner.run(function(Place(**task["place"]), **task["parameters"]))))


if __name__ == "__main__":
    main()
