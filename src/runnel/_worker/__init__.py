"""What runs: one worker per process, with a member per processor, and a consumer per partition it owns.

The loops here read as the protocol of ``docs/architecture.md``. No key names, no arithmetic.
"""

from runnel._worker.collector import tune_collector
from runnel._worker.loops import loop_factory
from runnel._worker.worker import Worker

__all__ = ["Worker", "loop_factory", "tune_collector"]
