"""How fast Runnel is, beside the loop that an expert writes by hand with redis-py: ``runnel bench``.

``rows`` says what is measured and what it must reach; ``suite`` runs it in rounds; ``side`` is one measurement in a
process of its own, by ``ours`` or ``bare``; ``report`` shows the figures; ``servers`` starts private ones.
"""

from runnel.bench.report import as_json, as_table
from runnel.bench.rows import FULL, QUICK, Scale, chosen
from runnel.bench.servers import private_servers
from runnel.bench.suite import Suite

__all__ = ["FULL", "QUICK", "Scale", "Suite", "as_json", "as_table", "chosen", "private_servers"]
