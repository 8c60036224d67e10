"""Taking note of what was lost, so that only what is new is shown."""

from collections.abc import Sequence
from dataclasses import dataclass

from runnel._redis import scripts
from runnel.admin.access import chosen_partitions, connected, generation_of, processor_of
from runnel.app import App

__all__ = ["Losses", "acknowledge_losses"]


@dataclass(frozen=True, slots=True)
class Losses:
    """What was counted in a partition.

    Attributes:
        partition: its number.
        lost: events that were removed before they were processed.
        rollbacks: how often Redis had lost what was processed.
    """

    partition: int
    lost: int
    rollbacks: int


async def acknowledge_losses(app: App, processor: str, partitions: Sequence[int] | None = None) -> list[Losses]:
    """Count losses and rollbacks from zero again. Nothing comes back by that.

    Arguments:
        app: the app.
        processor: name of the processor.
        partitions: their numbers; ``None`` for all.

    Returns:
        What was counted. Where more is lost at this very moment, it stays, and is not in the answer.

    Raises:
        UnknownProcessor: the app has none of that name.
        NoSuchPlace: a partition does not exist.
        RedisUnavailable: Redis cannot be reached. Repeat it: it can be done twice.
    """
    stream = processor_of(app, processor).stream
    async with connected(app) as link:
        generation = await generation_of(link, stream, processor)
        keys, chosen = stream.keys_of(generation), chosen_partitions(stream, partitions, generation)
        looks = await scripts.look(link, keys, processor, chosen)
        return [
            Losses(partition, look.lost, look.rollbacks)
            for partition, look in looks.items()
            if (look.lost or look.rollbacks)
            and await scripts.acknowledge(link, keys, processor, partition, look.lost, look.rollbacks)
        ]
