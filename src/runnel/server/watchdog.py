"""The process between a program and its private server: it makes the server die with the program.

Run as a script by ``embedded``, as ``python -I -S watchdog.py OWNER_PID PRIVATE_DIRECTORY COMMAND...``; so it imports
the standard library only. It starts the server as its child, and the program (the owner) holds a pipe to it:

* standard input: one byte per order, ``TERMINATE`` or ``KILL``. Its end means that the owner is gone, however it ended:
  the server is ended and the private directory removed (an empty argument: there is none).
* standard output: the server's process id and a line feed, once.
* standard error: the server's log, which the server shares.
* exit status: the server's, or 128 plus the number of the signal that ended it.

Why a process and not ``PR_SET_PDEATHSIG`` from the owner alone: that is Linux only, and follows the *thread* that made
the child, so that a server started in a short-lived thread would die with that thread. Why orders and not signals from
the owner: the server's process id stays its own until the watchdog has reaped it, so that no order can hit a stranger.

Started in a session of its own, it and the server do not hear the Ctrl-C of the owner's terminal: the owner stops the
server when it has drained.
"""

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable

__all__ = ["KILL", "TERMINATE"]

TERMINATE = b"T"
KILL = b"K"

ORDERS = 0
ANSWER = 1
LOG = 2

OWNER_CHECK = 1.0
"""Seconds between looks at whether the owner still lives. The pipe says so at once, unless a fork of the owner has
inherited the owner's end and outlives it."""

LAST_GRACE = 2.0
"""Seconds that the server gets to end by itself when the owner is gone. Writing out an append-only file is all it has
to do, and whoever starts the same program again finds the port taken meanwhile."""

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    owner = int(arguments[0])
    private_directory = arguments[1]
    signals = hear_signals()
    server = spawn(arguments[2:])
    os.write(ANSWER, b"%d\n" % server)
    os.close(ANSWER)

    status, owner_is_gone = watch(server, owner, signals)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server, signal.SIGKILL)  # a child that rewrites the append-only file survives its server
    if owner_is_gone and private_directory:
        shutil.rmtree(private_directory, ignore_errors=True)
    return status if status >= 0 else 128 - status


def hear_signals() -> int:
    """Have every signal that matters arrive as a byte, its number, and return the descriptor to read them from."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the owner's thread may have blocked some
    return reader


def spawn(command: list[str]) -> int:
    """Start the server as a child and leader of its own process group, and return its process id."""
    die_with_parent = parent_death_signal()
    watchdog = os.getpid()
    server = os.fork()
    if server:
        # Both sides set the group, so that it exists whoever comes first. EACCES: the child did, and runs its program.
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(server, server)
        return server
    try:
        os.setpgid(0, 0)
        die_with_parent()
        if os.getppid() != watchdog:  # it died before we asked to be told
            os._exit(1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)  # Python ignores them, and a new program would inherit that
        os.dup2(os.open(os.devnull, os.O_RDONLY), ORDERS)
        os.dup2(LOG, ANSWER)
        # A server ends at once if the locale that the environment names is not installed, as in many containers.
        os.environ["LC_ALL"] = "C"
        os.execv(command[0], command)
    except BaseException as error:
        os.write(LOG, f"{command[0]}: {error}\n".encode())
    os._exit(127)


def parent_death_signal() -> Callable[[], None]:
    """What a child calls to be killed when the watchdog itself is: on Linux, from this only thread, which never ends.

    Elsewhere, and in a Python without ctypes, it does nothing: a watchdog killed by hand then leaves its server behind.
    """
    if sys.platform != "linux":
        return lambda: None
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return lambda: None
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def watch(server: int, owner: int, signals: int) -> tuple[int, bool]:
    """Carry out orders until the server has ended.

    Returns its exit code (negative: the signal that ended it) and whether the owner is gone.
    """
    while (status := reap(server)) is None:
        readable, _, _ = select.select([ORDERS, signals], [], [], OWNER_CHECK)
        if os.getppid() != owner:
            return end(server), True
        if ORDERS in readable:
            order = os.read(ORDERS, 1)
            if not order:
                return end(server), True
            os.kill(server, signal.SIGKILL if order == KILL else signal.SIGTERM)
        if signals in readable and set(os.read(signals, 512)) - {signal.SIGCHLD}:
            return end(server), False  # somebody ends the watchdog itself
    return status, False


def end(server: int) -> int:
    """End the server, gently at first, and return its exit code."""
    os.kill(server, signal.SIGTERM)
    deadline = time.monotonic() + LAST_GRACE
    while time.monotonic() < deadline:
        if (status := reap(server)) is not None:
            return status
        time.sleep(0.01)
    os.kill(server, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(server, 0)[1])


def reap(server: int) -> int | None:
    """The exit code of the server, or ``None`` while it runs."""
    ended, status = os.waitpid(server, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
