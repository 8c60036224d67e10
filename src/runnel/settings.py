"""The settings of an app: keywords of ``App``, or environment variables.

The only place that reads the environment.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from runnel._core.routing import DEFAULT_HASHER
from runnel.codecs import JSONSerializer
from runnel.constants import ExceptionPolicy
from runnel.errors import ConfigurationError, UnknownSetting, did_you_mean
from runnel.interfaces import Compressor, Serializer

__all__ = ["Settings", "default_target", "load_settings", "otel_exporters", "unknown_variables"]

PREFIX = "RUNNEL_"


class Settings(BaseSettings):
    """All settings, with their defaults.

    Each is a keyword of :class:`runnel.App`, or an environment variable: its name in capitals behind ``RUNNEL_``, such
    as ``RUNNEL_LOG_LEVEL=debug``. A keyword wins over a variable. ``name``, and what is an object (``hasher``,
    ``serializer``, ``compressor``), must be a keyword. Where ``app.stream`` or ``app.processor`` has an argument of
    that name, a setting is its default. All durations are in seconds.

    Attributes:
        name: of the app; part of every key in Redis.
        redis_url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, with user, password and database as redis-py takes
            them; ``redis+sentinel://host:26379,host2:26379/service/0`` for a primary that sentinels watch;
            ``redis+cluster://host:6379,host2:6379`` for a Redis Cluster. With TLS: ``rediss+sentinel``,
            ``rediss+cluster``.
        autodiscover: a glob pattern, relative to the working directory, of modules that a worker imports when it
            starts.
        log_level: what a worker writes to its log.
        log_format: lines for people, or one JSON object per line.
        timezone: of crontabs; a name of the IANA database.
        otel: traces and metrics by OpenTelemetry: of what is sent and of what is processed. Needs ``runnel[otel]``.

    Attributes of streams:
        partition_count: partitions of a stream: the highest number of workers that can share it. Fixed when it is first
            used.
        partition_size: entries that a partition keeps, roughly; 0 for any number. Unprocessed entries are not trimmed,
            see on_full.
        hasher: from a partition key to a number that chooses the partition.
        serializer: of structured records.
        compressor: of structured records; ``None`` for no compression.
        on_full: what ``send`` does when a partition is full of unprocessed events: wait, fail at once, or drop the
            oldest.
        on_full_timeout: how long ``send`` waits for room before it raises :class:`runnel.errors.StreamFull`.
        durability: where an event, and what a processor has done, must be stored before it counts: in the memory of the
            primary; in that of a replica as well, so that a fail-over loses nothing; or on the primary's disk (Redis
            7.2 or Valkey, with an append-only file), so that a crash of the machine does not.
        send_timeout: how long ``send`` keeps trying when Redis is away, before it raises
            :class:`runnel.errors.RedisUnavailable`.

    Attributes of processors:
        exception_policy: what becomes of a partition whose processing fails.
        retries: how often a failing event or batch is tried again before the exception policy applies.
        backoff: the longest that the first of these attempts waits. It doubles with each one; a random part of up to a
            half is taken off.
        backoff_max: the longest wait before an attempt.
        prefetch_count: events read from Redis at a time per partition. A processor that is faster than that is read for
            in larger steps, of up to 128 events. Up to twice as many as are read at a time wait in a worker.
        prefetch_bytes: bytes of events that may wait in a worker per processor, estimated from their average size. What
            does not fit is read later. When not even one event per partition fits, none waits: each is read when its
            processor asks for it.
        commit: ``auto``: acknowledging never delays the next event. ``each``: the next event waits until Redis has
            confirmed.
        grace_period: how long the event in progress may take when its partition moves or its worker stops. A worker
            that cannot be told to hand it over loses it after ``session_timeout``, if that is longer.
        stall_timeout: how long a partition may have events and make no progress before the log and the metrics say so.
            More than the longest that an event, or a batch, takes.

    Attributes of groups of workers:
        session_timeout: a worker that is silent for so long has lost its partitions. (One that was killed loses them in
            about a second.)
        heartbeat_interval: how often a worker reports. At most a quarter of the session timeout, and half a second
            unless that is less.
        join_delay: how long a new worker waits for others to come, before partitions move.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, arbitrary_types_allowed=True, validate_default=False
    )

    name: str = Field(min_length=1)
    redis_url: str = "redis://127.0.0.1:6379"
    autodiscover: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    timezone: str = "UTC"
    otel: bool = False

    # Streams
    partition_count: int = Field(16, ge=1, le=4096)
    partition_size: int = Field(50_000, ge=0)
    hasher: Callable[[Any], int] = DEFAULT_HASHER
    serializer: Serializer = JSONSerializer()
    compressor: Compressor | None = None
    on_full: Literal["wait", "raise", "trim"] = "wait"
    on_full_timeout: float = Field(30.0, gt=0)
    durability: Literal["primary", "replica", "disk"] = "primary"
    send_timeout: float = Field(30.0, gt=0)

    # Processors
    exception_policy: ExceptionPolicy = ExceptionPolicy.HALT
    retries: int = Field(0, ge=0)
    backoff: float = Field(0.5, gt=0)
    backoff_max: float = Field(30.0, gt=0)
    prefetch_count: int = Field(8, ge=1)
    prefetch_bytes: int = Field(16_777_216, ge=1)
    commit: Literal["auto", "each"] = "auto"
    grace_period: float = Field(30.0, gt=0)
    stall_timeout: float = Field(60.0, gt=0)

    # Groups of workers
    session_timeout: float = Field(10.0, ge=0.5)
    heartbeat_interval: float = Field(gt=0, default_factory=lambda given: min(0.5, given["session_timeout"] / 4))
    join_delay: float = Field(0.1, ge=0)

    @field_validator("hasher")
    @classmethod
    def _lasts(cls, value: Callable[[Any], int]) -> Callable[[Any], int]:
        if value is hash:
            raise ValueError(
                "hash() gives another number for the same text in every process, so the events of a key would part. "
                "Leave it out for xxh64, or use a function such as zlib.crc32 over the bytes of the key"
            )
        return value

    @field_validator("heartbeat_interval")
    @classmethod
    def _fits_session(cls, value: float, info: ValidationInfo) -> float:
        session = info.data.get("session_timeout", value * 4)
        if value > session / 4:
            raise ValueError(f"must be at most a quarter of session_timeout ({session / 4:g})")
        return value


def load_settings(keywords: Mapping[str, Any]) -> Settings:
    """Settings from keywords, with the environment for what is not given.

    Raises:
        UnknownSetting: a keyword is no setting.
        ConfigurationError: a value does not fit.
    """
    check_names(keywords)
    try:
        return Settings(**keywords)
    except ValidationError as error:
        lines = []
        for item in error.errors(include_url=False):
            if item["type"] == "default_factory_not_called":
                continue  # a default that depends on the value that does not fit
            name = str(item["loc"][0])
            where = "" if name in keywords else f" (from {PREFIX}{name.upper()})"
            lines.append(f"  {name} = {item['input']!r}{where}: {item['msg']}")
        raise ConfigurationError("These settings do not fit:\n" + "\n".join(lines)) from None


def check_names(keywords: Mapping[str, Any]) -> None:
    """Refuse keywords that are no settings.

    Raises:
        UnknownSetting: with the nearest name there is.
    """
    for name in keywords:
        if name not in Settings.model_fields:
            raise UnknownSetting(f'Unknown setting "{name}".{did_you_mean(name, Settings.model_fields)}')


def unknown_variables() -> dict[str, str]:
    """Variables in the environment that look like settings and are none, each with a hint."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {PREFIX + "APP"}
    return {
        name: did_you_mean(name, known)
        for name in sorted(os.environ)
        if name.startswith(PREFIX) and name not in known and not name.startswith(PREFIX + "TEST_")
    }


def default_target() -> str | None:
    """The app that commands use when none is named: ``RUNNEL_APP``."""
    return os.environ.get(PREFIX + "APP")


def otel_exporters(signal: str) -> list[str]:
    """The exporters that OpenTelemetry's own variables ask for, by the names under which packages offer them.

    Arguments:
        signal: ``traces`` or ``metrics``.
    """
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    otlp = f"otlp_proto_{protocol.partition('/')[0]}"
    names = (os.environ.get(f"OTEL_{signal.upper()}_EXPORTER") or "otlp").split(",")
    return [otlp if name.strip() == "otlp" else name.strip() for name in names if name.strip() != "none"]
