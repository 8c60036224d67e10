"""A real server whose scripts read a clock, connections and a run id that the test sets; and may be made wrong.

The scripts are those of the product, run through ``runnel._redis.scripts``; only the expressions in ``OUTSIDE`` are
replaced by a look into the hash ``test``. A mutant is one more replacement. An expression that is not found exactly
once fails.
"""

import hashlib
import socket
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import hiredis

from runnel._redis import scripts
from runnel._redis.durability import PRIMARY, Confirmation
from runnel._redis.link import REPLY_TIMEOUT, Endpoint, Link
from runnel.errors import RedisError

OUTSIDE = {
    "heartbeat": [
        ("redis.call('TIME')", "redis.call('HMGET', 'test', 'seconds', 'micros')"),
        ("redis.call('PUBSUB', 'SHARDNUMSUB', unpack(channels))", "connections(channels)"),
        ("redis.call('INFO', 'server', 'replication')", "info()"),
    ],
    "park": [("redis.call('TIME')", "redis.call('HMGET', 'test', 'seconds', 'micros')")],
    "append": [("local id, next_id = nil, '*'", "local id, next_id = nil, stamp(log)")],
}
"""What a script learns from the server itself."""

PRELUDE = """
local function connections(channels)
  local counts, connected = {}, redis.call('HMGET', 'test', unpack(channels))
  for i, channel in ipairs(channels) do counts[2 * i - 1], counts[2 * i] = channel, connected[i] or 0 end
  return counts
end
local function info()
  local said = redis.call('HMGET', 'test', 'run', 'replication')
  return 'run_id:' .. said[1] .. ' master_replid:' .. said[2]
end
local function stamp(log)      -- as XADD *: the clock, but not before the last id
  local time = redis.call('HMGET', 'test', 'seconds', 'micros')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  if redis.call('EXISTS', log) == 0 then return string.format('%.0f-*', now) end
  local flat = redis.call('XINFO', 'STREAM', log)
  for i = 1, #flat, 2 do
    if flat[i] == 'last-generated-id' then
      return string.format('%.0f-*', math.max(now, tonumber(flat[i + 1]:match('^%d+'))))
    end
  end
end
"""


@dataclass(frozen=True)
class Mutant:
    """Something that is wrong on purpose.

    Attributes:
        breaks: what the message of the violation begins with.
        script: name of the script that is changed; empty if it is the member.
        old: text of the script, found in it exactly once.
        new: what stands there instead.
        member: names of the faults of the simulated member.
    """

    breaks: str
    script: str = ""
    old: str = ""
    new: str = ""
    member: frozenset[str] = field(default=frozenset())


CORRECT = Mutant("")


def exactly(source: str, old: str, new: str) -> str:
    """``source`` with the only ``old`` in it replaced."""
    assert source.count(old) == 1, f"found {source.count(old)} times in the script: {old}"
    return source.replace(old, new)


class Laboratory(Link):
    """A link that waits on its socket, so that what the product awaits can be run to its end by :func:`now`.

    What is :meth:`set` travels with the next command: a schedule has many times more steps of the clock than a server
    needs to be told.
    """

    def __init__(self, url: str) -> None:
        super().__init__(Endpoint(url))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(REPLY_TIMEOUT)
        self._socket.connect(url.removeprefix("unix://"))
        self._replies = hiredis.Reader()
        self._edited: dict[str | bytes, str] = {}
        self._settings: dict[str, Any] = {}
        self._unsaid: dict[str, Any] = {}

    def use(self, mutant: Mutant) -> None:
        """Run the scripts with this change from now on."""
        for name in ("heartbeat", "acquire", "commit", "append", "reset", "losses", "quarantine", "park"):
            script = getattr(scripts, f"_{name}")
            source = script._source.decode()
            for old, new in OUTSIDE.get(name, ()):
                source = exactly(source, old, new)
            if mutant.script == name:
                source = exactly(source, mutant.old, mutant.new)
            shebang, _, rest = source.partition("\n")
            source = f"{shebang}\n{PRELUDE}\n{rest}"
            digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
            self._edited |= {script._digest: digest, script._source: source}

    def set(self, name: str, value: Any) -> None:
        """What the scripts see of the server from now on."""
        self._settings[name] = self._unsaid[name] = value

    def empty(self, *, forget: bool = False) -> None:
        """Remove everything, but for what was set, unless that is to be forgotten as well."""
        self.ask("FLUSHALL")
        if forget:
            self._settings = {}
        self._unsaid = dict(self._settings)

    async def call(self, *command: Any, timeout: float = REPLY_TIMEOUT, confirm: Confirmation = PRIMARY) -> Any:
        return self.ask(command[0], self._edited.get(command[1], command[1]), *command[2:])

    def ask(self, *command: Any) -> Any:
        """One command, now."""
        [answer] = self.ask_all((command,))
        if isinstance(answer, hiredis.ReplyError):
            raise RedisError(str(answer))
        return answer

    def ask_all(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Several commands in one round trip."""
        packed = [hiredis.pack_command(command) for command in commands]
        unasked = bool(self._unsaid)
        if unasked:
            told = [word for item in self._unsaid.items() for word in item]
            packed.insert(0, hiredis.pack_command(("HSET", "test", *told)))
            self._unsaid = {}
        self._socket.sendall(b"".join(packed))
        answers: list[Any] = []
        while len(answers) < len(packed):
            answer = self._replies.gets()
            if answer is False:
                received = self._socket.recv(65536)
                assert received, "the server has closed the connection"
                self._replies.feed(received)
            else:
                answers.append(answer)
        return answers[1:] if unasked else answers

    def disconnect(self) -> None:
        self._socket.close()


def now(work: Coroutine[Any, Any, Any]) -> Any:
    """Run what never really waits."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("this waits for an event loop")


def as_mapping(flat: list[bytes]) -> Mapping[bytes, bytes]:
    """A hash as Redis answers it."""
    return dict(zip(flat[::2], flat[1::2], strict=True))
