"""What a server refuses, in words that say what to do about it."""

from collections.abc import Sequence
from typing import Any

from runnel.errors import NotAllowed, RedisError

__all__ = ["CURES", "refused"]

CURES = {
    "OOM": "Its memory is full: raise maxmemory, or start workers, so that what they have processed can be trimmed.",
    "MISCONF": "It cannot write to its disk: see its log, and whether the disk is full.",
}
"""What to do about an error that passes only if somebody sees to it, by the code that it begins with."""

NEEDED = "on >PASSWORD ~runnel:* &runnel:* +@all"
"""What a user must be allowed, in the words of ``ACL SETUSER``."""


def refused(url: str, command: Sequence[Any], answer: str) -> RedisError:
    """What to raise for an error that waiting does not mend.

    Arguments:
        url: of the server, without its password.
        command: what it was asked: name and arguments.
        answer: the error, as it came.
    """
    kind, _, rest = answer.partition(" ")
    rest = rest.rstrip(".")
    if kind == "NOPERM":
        return NotAllowed(
            f"{url} does not allow this: {rest}. The user in the URL needs every command, and the keys and channels "
            f"that begin with runnel: for example, ACL SETUSER NAME {NEEDED}"
        )
    if "DB index is out of range" in answer:
        return NotAllowed(f"{url} has no such database. Correct the number in the URL, or leave it out for 0.")
    if kind == "WRONGTYPE":
        name = _first_key(command)
        return RedisError(
            f'{url} has something else under "{name}", or a key beside it ({kind} {rest}). Another program uses that '
            "name, or it was written by hand: see TYPE of these keys. Rename what is not Runnel's, or the app."
        )
    return RedisError(answer.removeprefix("ERR "))


def _first_key(command: Sequence[Any]) -> str:
    match command:
        case ["EVAL" | "EVALSHA", _, _, key, *_]:
            return str(key)
        case ["XREAD", *_]:
            return str(command[command.index("STREAMS") + 1])
        case _:
            return str(command[1])
