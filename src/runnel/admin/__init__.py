"""What the commands do, as typed functions: looking at a running system, and mending it.

Nothing in the worker knows this package.
"""

from runnel.admin.dead_letters import (
    DeadLetter,
    Plan,
    list_dead_letters,
    plan_purge,
    plan_replay,
    purge_dead_letters,
    replay_dead_letters,
)
from runnel.admin.deletion import Deletion, delete_processor, plan_deletion
from runnel.admin.description import Description, GenerationDescription, PartitionDescription, describe_stream
from runnel.admin.doctor import examine
from runnel.admin.findings import Finding
from runnel.admin.losses import Losses, acknowledge_losses
from runnel.admin.migration import (
    Migration,
    Remaining,
    begin_migration,
    plan_migration,
    purge_generations,
    watch_migration,
)
from runnel.admin.moving import Move, Moved, move_stream, plan_move
from runnel.admin.pausing import pause_processor, resume_processor
from runnel.admin.positions import Reset, Shift, apply_reset, plan_reset
from runnel.admin.quarantine import (
    Quarantine,
    Skipped,
    failed_events,
    list_quarantines,
    retry_quarantine,
    skip_quarantine,
)
from runnel.admin.server_check import server_warnings
from runnel.admin.status import (
    MemberStatus,
    PartitionStatus,
    ProcessorStatus,
    Rate,
    SlowEvent,
    Stall,
    Status,
    StreamStatus,
    status_of,
    watch_status,
)
from runnel.admin.tail import key_of, tail_of

__all__ = [
    "DeadLetter",
    "Deletion",
    "Description",
    "Finding",
    "GenerationDescription",
    "Losses",
    "MemberStatus",
    "Migration",
    "Move",
    "Moved",
    "PartitionDescription",
    "PartitionStatus",
    "Plan",
    "ProcessorStatus",
    "Quarantine",
    "Rate",
    "Remaining",
    "Reset",
    "Shift",
    "Skipped",
    "SlowEvent",
    "Stall",
    "Status",
    "StreamStatus",
    "acknowledge_losses",
    "apply_reset",
    "begin_migration",
    "delete_processor",
    "describe_stream",
    "examine",
    "failed_events",
    "key_of",
    "list_dead_letters",
    "list_quarantines",
    "move_stream",
    "pause_processor",
    "plan_deletion",
    "plan_migration",
    "plan_move",
    "plan_purge",
    "plan_replay",
    "plan_reset",
    "purge_dead_letters",
    "purge_generations",
    "replay_dead_letters",
    "resume_processor",
    "retry_quarantine",
    "server_warnings",
    "skip_quarantine",
    "status_of",
    "tail_of",
    "watch_migration",
    "watch_status",
]
