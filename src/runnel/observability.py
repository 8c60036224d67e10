"""Announcements as log lines.

The only module that configures logging, and only when a command asks for it: the library leaves it alone.
"""

import asyncio
import contextvars
import logging
import sys
from collections import Counter
from typing import Any

import structlog

from runnel import instruments as i
from runnel._core.tracebacks import user_traceback
from runnel.errors import RunnelError

__all__ = ["LogSubscriber", "configure_logging", "user_traceback"]

GATHER = 0.05
"""Seconds within which the partitions of one rebalance arrive, to be logged in one line."""


def configure_logging(level: str, form: str, *, colors: bool, process: int | None = None) -> None:
    """Log to stderr, by structlog and by ``logging`` alike; but leave alone what the app has configured itself.

    Arguments:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        form: ``console`` for people or ``json`` for machines.
        colors: whether the console can show them.
        process: number of this process among those of a supervisor, to be in each line.
    """
    number = logging.getLevelNamesMapping()[level.upper()]

    def add_process(_logger: Any, _method: str, event: Any) -> Any:
        return event if process is None else event | {"process": process}

    common: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso" if form == "json" else "%H:%M:%S.%f", utc=form == "json"),
        add_process,
    ]
    # Not structlog's own choice where rich is installed: it shows local variables, and with them passwords.
    plain = structlog.dev.plain_traceback
    rendering: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        if form == "json"
        else [structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=30, sort_keys=False, exception_formatter=plain)]
    )
    if not structlog.is_configured():
        structlog.configure(
            processors=[*common, *rendering],
            wrapper_class=structlog.make_filtering_bound_logger(number),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
            cache_logger_on_first_use=False,
        )
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
        handler.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=[*common, structlog.stdlib.ExtraAdder()], processors=[remove_meta, *rendering]
            )
        )
        root.addHandler(handler)
        root.setLevel(number)


class LogSubscriber:
    """Writes what an operator wants to know, one line each. Subscribe it to the instruments of an app."""

    def __init__(self, form: str) -> None:
        """Arguments:
        form: ``console`` or ``json``; on the console, tracebacks stand above their line.
        """
        self._json = form == "json"
        self._log = structlog.get_logger("runnel")
        self._owned: Counter[str] = Counter()
        self._gained: Counter[str] = Counter()
        self._released: Counter[str] = Counter()
        self._lost: Counter[tuple[str, str]] = Counter()
        self._away: list[str] = []  # operations that wait for Redis: an outage is one line, not one for each
        self._longest = 0.0  # seconds that one of them has waited in this outage
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, announcement: i.Announcement) -> None:
        """Log an announcement; without what is bound where it was announced, since it names its facts itself."""
        contextvars.Context().run(self._write, announcement)

    def _write(self, announcement: i.Announcement) -> None:
        log = self._log
        match announcement:
            case i.WorkerStarted(worker, processors):
                log.info("worker started", worker=worker, processors=list(processors))
            case i.MemberJoined(processor, member):
                log.info("joined", processor=processor, member=member)
            case i.MemberEvicted(processor, member):
                log.warning("evicted: silent for too long, joining again", processor=processor, member=member)
            case i.PartitionGained(processor, partition, token, position, quarantined):
                log.debug("partition gained", processor=processor, partition=partition, token=token, position=position)
                if quarantined:
                    log.warning("partition is quarantined", processor=processor, partition=partition)
                self._count(self._gained, processor, 1)
            case i.PartitionReleased(processor, partition, token, seconds):
                log.debug("partition released", processor=processor, partition=partition, token=token, seconds=seconds)
                self._count(self._released, processor, -1)
            case i.PartitionLost(processor, partition, token, reason):
                log.debug("partition lost", processor=processor, partition=partition, token=token, reason=reason)
                self._owned[processor] -= 1
                self._lost[processor, reason] += 1
                self._later()
            case i.PartitionRewound(processor, partition, "reset", expected, stored):
                (log.debug if expected == stored else log.info)(
                    "position was reset", processor=processor, partition=partition, previous=expected, position=stored
                )
            case i.PartitionRewound(processor, partition, reason, expected, stored):
                log.error(
                    "Redis has lost confirmed data; going on from what is stored",
                    processor=processor,
                    partition=partition,
                    confirmed=expected,
                    stored=stored or "nothing",
                )
            case i.PartitionsPaused(processor, partitions):
                log.info("paused", processor=processor, partitions=list(partitions))
            case i.PartitionsResumed(processor, partitions):
                log.info("resumed", processor=processor, partitions=list(partitions))
            case i.LossDetected(processor, partition, entries):
                log.error(
                    "events were removed before they were processed",
                    processor=processor,
                    partition=partition,
                    events=entries,
                )
            case i.LogReplaced(processor, partition, position):
                log.error(
                    "a log or all that says what was processed in it was deleted; events may be lost",
                    processor=processor,
                    partition=partition,
                    position=position,
                )
            case i.PartitionStalled(processor, partition, seconds, doing):
                log.warning(
                    "no progress, although there are events",
                    processor=processor,
                    partition=partition,
                    seconds=round(seconds),
                    doing=doing,
                )
            case i.PartitionRecovered(processor, partition):
                log.info("progress again", processor=processor, partition=partition)
            case i.AttemptFailed(processor, partition, event_ids, attempt, retries, seconds, error):
                log.warning(
                    "processing failed; trying again",
                    processor=processor,
                    partition=partition,
                    event_ids=list(event_ids),
                    attempt=attempt,
                    retries=retries,
                    seconds=round(seconds, 3),
                    error=f"{type(error).__name__}: {error}",
                )
            case i.PartitionFailed():
                self._failed(announcement)
            case i.TaskFailed(task, error):
                self._with_traceback(error, "background task failed", task=task)
            case i.RedisLost(role, error):
                first = not self._away
                self._longest = 0.0 if first else self._longest
                self._away.append(role)
                (log.warning if first else log.debug)(
                    "waiting for Redis", operation=role, error=getattr(error, "what", str(error))
                )
            case i.RedisRecovered(role, seconds):
                self._away.remove(role)
                self._longest = max(self._longest, seconds)
                if self._away:
                    log.debug("Redis is back", operation=role, seconds=round(seconds, 2))
                else:  # the one that is last to be back has not waited the longest
                    log.info("Redis is back", operation=role, seconds=round(self._longest, 2))
            case i.RedisGivenUp(role):
                self._away.remove(role)
                log.debug("not waiting for Redis any more", operation=role)
            case i.SequenceGap(stream, partition, stored, sent):
                log.error(
                    "Redis has lost events that it had confirmed to this producer",
                    stream=stream,
                    partition=partition,
                    confirmed_batch=sent - 1,
                    stored_batch=stored,
                )
            case i.GenerationBegun(processor, stream, generation, partitions):
                log.info(
                    "the stream is divided anew",
                    processor=processor,
                    stream=stream,
                    generation=generation,
                    partitions=partitions,
                )
            case i.StreamLeft(processor, stream, address):
                log.error(
                    f"the stream is moved to {address}: start this worker again with that server",
                    processor=processor,
                    stream=stream,
                )
            case i.StreamDividedAnew(stream, said, partitions, generation):
                log.warning(
                    f"the stream has {partitions} partitions now; it goes on, but say partition_count={partitions} "
                    f"instead of {said} in the code",
                    stream=stream,
                    generation=generation,
                )
            case i.WorkerStopping(_, reason, in_flight):
                self._flush()
                log.info("stopping", reason=reason, in_flight=in_flight)
            case i.WorkerStopped(_, processed, released, seconds):
                self._flush()
                log.info("stopped", processed=processed, released=released, seconds=round(seconds, 3))

    def warn(self, event: str) -> None:
        """Log something that is not announced."""
        self._log.warning(event)

    def note(self, event: str, **facts: Any) -> None:
        """Log something that is not announced and is as it should be."""
        self._log.info(event, **facts)

    def _failed(self, failed: i.PartitionFailed) -> None:
        done = {
            "halt": "processing failed; the worker stops",
            "quarantine": "processing failed; the partition is quarantined",
            "ignore": "processing failed; going on behind the failed event",
        }[failed.policy]
        ids = list(failed.event_ids)
        self._with_traceback(
            failed.error,
            done,
            processor=failed.processor,
            partition=failed.partition,
            event_ids=ids,
            **({"attempt": failed.attempt} if failed.attempt > 1 else {}),
        )

    def _with_traceback(self, error: BaseException, event: str, **facts: Any) -> None:
        text = user_traceback(error)
        brief = str(error) if isinstance(error, RunnelError) else f"{type(error).__name__}: {error}"
        if self._json:
            self._log.error(event, **facts, error=brief, **({"traceback": text} if text else {}))
            return
        if text:
            print(text, file=sys.stderr, flush=True)
        self._log.error(event, **facts, error=brief)

    def _count(self, counter: Counter[str], processor: str, change: int) -> None:
        counter[processor] += 1
        self._owned[processor] += change
        self._later()

    def _later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER, self._flush)

    def _flush(self) -> None:
        """One line per processor for what has moved since the last."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for processor in sorted({*self._gained, *self._released}):
            facts = {"gained": self._gained[processor], "released": self._released[processor]}
            self._log.info(
                "partitions assigned" if self._gained[processor] else "partitions released",
                processor=processor,
                **{name: number for name, number in facts.items() if number},
                owned=self._owned[processor],
            )
        for (processor, reason), number in self._lost.items():
            self._log.warning(
                "partitions lost", processor=processor, partitions=number, reason=reason, owned=self._owned[processor]
            )
        self._gained.clear()
        self._released.clear()
        self._lost.clear()
