"""Whether a server is one to keep events in."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from runnel._redis.groups import server_time
from runnel._redis.link import Link
from runnel._redis.queries import server_facts, server_setting
from runnel.admin.access import connected
from runnel.admin.findings import Finding
from runnel.app import App

__all__ = ["check_clock", "check_server", "on_each_primary", "server_warnings"]

OLDEST = {"Redis": (7, 0), "Valkey": (7, 2)}
"""The versions from which sharded channels are seen by scripts, and logs count what was ever added."""

MOST_APART = 2.0
"""Seconds between the clocks of two machines that are set by a time server: more than a hundred times what is usual."""

NEARLY_FULL = 0.9
"""Of ``maxmemory``."""


async def server_warnings(app: App) -> list[Finding]:
    """What a worker should say about its server when it starts: that it evicts, or that it keeps nothing.

    Arguments:
        app: the app.

    Raises:
        RedisUnavailable: Redis cannot be reached.
    """
    async with connected(app) as link:
        return await on_each_primary(link, _eviction, _persistence)


async def on_each_primary(link: Link, *checks: Callable[[Link], Awaitable[list[Finding]]]) -> list[Finding]:
    """What the checks find on each primary; where there are several, a finding says which one it is about."""
    link.endpoint.doubt()
    primaries = await link.endpoint.primaries()
    found = []
    for primary in primaries:
        one = primary.link()
        where = f"{primary.safe_url}: " if len(primaries) > 1 else ""
        try:
            found += [replace(item, what=where + item.what) for check in checks for item in await check(one)]
        finally:
            await one.close()
    return found


async def check_server(link: Link) -> list[Finding]:
    """Everything about the server itself; what it does not let us ask is left out."""
    return [*await _version(link), *await _persistence(link), *await _writing(link), *await _eviction(link)]


async def check_clock(link: Link) -> list[Finding]:
    """How far the server's clock is from ours."""
    before = time.time()
    theirs = await server_time(link)
    after = time.time()
    apart = theirs - (before + after) / 2
    if abs(apart) <= MOST_APART + (after - before) / 2:
        return []
    ahead = "ahead of" if apart > 0 else "behind"
    return [
        Finding(
            f"The server's clock is {abs(apart):.1f} s {ahead} this machine's. Ids of events and ages are by the "
            "server's, crontabs and logs by the machine's.",
            "Set both by a time server (NTP).",
        )
    ]


async def _version(link: Link) -> list[Finding]:
    facts = await server_facts(link, "server")
    name = "Valkey" if "valkey_version" in facts else "Redis"
    version = facts.get("valkey_version") or facts.get("redis_version")
    if version is None:
        return []
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers >= OLDEST[name]:
        return []
    oldest = ".".join(map(str, OLDEST[name]))
    return [Finding(f"The server is {name} {version}.", f"Runnel needs {name} {oldest} or later: upgrade it.")]


async def _persistence(link: Link) -> list[Finding]:
    facts = await server_facts(link, "persistence")
    if facts.get("aof_enabled") != "0":
        return []  # switched on, or nothing that we may know
    save = await server_setting(link, "save")
    if save:
        return [
            Finding(
                "The server saves snapshots only: a crash loses what came after the last one.",
                "Switch on the append-only file: appendonly yes.",
                urgent=False,
            )
        ]
    if save is None:
        return []  # we may not ask
    return [
        Finding(
            "The server keeps nothing on disk: a restart loses all events and positions.",
            "Switch on the append-only file: appendonly yes.",
        )
    ]


async def _writing(link: Link) -> list[Finding]:
    facts = await server_facts(link, "persistence")
    broken = [
        name for name in ("aof_last_write_status", "rdb_last_bgsave_status") if facts.get(name, "ok").strip() != "ok"
    ]
    if not broken:
        return []
    return [
        Finding(
            f"The server could not write to its disk ({', '.join(broken)}).",
            "See its log, and whether the disk is full.",
        )
    ]


async def _eviction(link: Link) -> list[Finding]:
    facts = await server_facts(link, "memory")
    policy, limit = facts.get("maxmemory_policy", "noeviction").strip(), int(facts.get("maxmemory", 0))
    found = []
    if policy != "noeviction":
        when = "when its memory is full" if limit else "as soon as a maxmemory is set"
        which = "expire, which keep events from being sent twice" if policy.startswith("volatile") else "hold events"
        found.append(
            Finding(
                f"The server's maxmemory-policy is {policy}: {when}, it removes keys that {which}.",
                "Set maxmemory-policy noeviction: producers then wait, and nothing is lost.",
            )
        )
    used = int(facts.get("used_memory", 0))
    if limit and used > NEARLY_FULL * limit:
        found.append(
            Finding(
                f"The server uses {used / limit:.0%} of its maxmemory. When that is full, events cannot be sent.",
                "Raise maxmemory, lower partition_size, or start more workers.",
            )
        )
    return found
