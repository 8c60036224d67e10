"""Starts, stops and kills a private server. Owns its process and its directory, and no connection to it."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from runnel.errors import AddressInUse, ConfigurationError, ServerError
from runnel.server import probe, watchdog
from runnel.server.address import Address, TcpAddress, free_port, given_address, loopback
from runnel.server.binary import find_binary
from runnel.server.log import last_words, open_log

__all__ = ["EmbeddedServer"]

LOG_NAME = "server.log"

FREE_PORT_TRIES = 5

PROBE_PAUSE = 0.005
"""Seconds between two looks at a starting server, which takes 10 to 30 ms to be ready."""

KILL_PATIENCE = 5.0
"""Seconds that the system gets to end a killed process: long, since it may have much memory to give back."""


class EmbeddedServer:
    """A private Valkey or Redis, which lives no longer than the program that starts it.

    A context manager, or ``start()`` and ``stop()``. It may be started in any thread, and outlives that thread. It does
    not hear a Ctrl-C, and ends when the program ends, also when that is killed (see ``watchdog``).

    ::

        with EmbeddedServer(data_dir=Path(".runnel"), append_only=True) as server:
            app = App("shop", redis_url=server.url)
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        unix_socket: Path | None = None,
        data_dir: Path | None = None,
        append_only: bool = False,
        binary: str | Path | None = None,
        extra: Sequence[str] = (),
        start_timeout: float = 10.0,
    ) -> None:
        """Starts nothing yet.

        Arguments:
            host: a loopback address: one of 127.0.0.0/8, ``::1`` or ``localhost``.
            port: the TCP port. ``None``: a free one, chosen at every start that follows a stop.
            unix_socket: listen on this path instead of a port. Its directory must exist.
            data_dir: where the server keeps its files and its log, ``server.log``; made if missing, and kept. Used by
                one server at a time. ``None``: a private temporary directory, removed by ``stop()``.
            append_only: log every write to disk, synced once a second, so that data survives ``kill()`` and, with a
                ``data_dir``, ``stop()``. Otherwise data is in memory only.
            binary: the server program, as a path or a name on the PATH. ``None``: see ``find_binary``.
            extra: more server arguments, such as ``["--maxmemory", "64mb"]``. They cannot change where it listens.
            start_timeout: seconds within which the server has to be ready, loading its data included.

        Raises:
            ConfigurationError: an argument is unusable.
        """
        self._host = loopback(host)
        self._fixed = given_address(self._host, port, unix_socket)
        self._data_dir = None if data_dir is None else data_dir.absolute()
        self._append_only = append_only
        self._binary = None if binary is None else str(binary)
        self._extra = tuple(extra)
        self._start_timeout = start_timeout
        self._address: Address | None = self._fixed
        self._private: tempfile.TemporaryDirectory[str] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._listening: Address | None = None  # where a socket of ours may be
        self._pid = 0
        self._version: str | None = None

    # Asking

    @property
    def url(self) -> str:
        """What a client connects to: ``redis://127.0.0.1:29431`` or ``unix:///tmp/server.sock``. ``kill()`` keeps it.

        Raises:
            ServerError: the port is not chosen before ``start()``.
        """
        if self._address is None:
            raise ServerError("The private server has no address yet: it gets a free port from `start()`.")
        return self._address.url

    @property
    def pid(self) -> int:
        """The process id of the server itself.

        Raises:
            ServerError: it is not running.
        """
        if not self.running:
            raise ServerError("The private server is not running: call `start()`.")
        return self._pid

    @property
    def version(self) -> str:
        """Name and version, such as ``Valkey 9.1.2`` or ``Redis 7.0.15``.

        Raises:
            ServerError: it was never started.
        """
        if self._version is None:
            raise ServerError("The private server says its version when it has started: call `start()`.")
        return self._version

    @property
    def running(self) -> bool:
        """Whether the server's process lives."""
        return self._watchdog is not None and self._watchdog.poll() is None

    # Doing

    def start(self) -> Self:
        """Start the server and wait until it serves.

        After ``kill()`` it starts where it was, with the data that it had on disk.

        Raises:
            ConfigurationError: no server program, or an unusable socket path or data directory.
            AddressInUse: somebody else listens on the port or socket.
            ServerError: it runs already, ended by itself (the message shows why), or was not ready in time.
        """
        if self.running:
            raise ServerError(f"The private server runs already, at {self.url}.")
        self._end(watchdog.KILL, KILL_PATIENCE)  # what is left of one that ended by itself
        was_killed = self._private is not None or self._address is not self._fixed
        try:
            if self._address is not None:
                self._launch(self._address)
            else:
                self._address = self._launch_on_a_free_port()
        except BaseException:
            self._end(watchdog.KILL, KILL_PATIENCE)
            if not was_killed:  # one that was killed keeps its address and its data for the next attempt
                self._forget()
            raise
        return self

    def stop(self, timeout: float = 10.0) -> None:
        """End the server and remove what it leaves behind. Does nothing if that is done already.

        Arguments:
            timeout: seconds after which it is killed.
        """
        self._end(watchdog.TERMINATE, timeout)
        self._forget()

    def kill(self) -> None:
        """End the server at once, as a crash would: SIGKILL. Its address and its directory stay for ``start()``."""
        self._end(watchdog.KILL, KILL_PATIENCE)

    def restart(self) -> None:
        """Start again at the same address and with the same directory; a running server is ended first.

        What is not on disk (see ``append_only``) is lost.

        Raises:
            As ``start()``.
        """
        self._end(watchdog.TERMINATE, 10.0)
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # The steps

    def _launch_on_a_free_port(self) -> Address:
        for _ in range(FREE_PORT_TRIES - 1):
            address = TcpAddress(self._host, free_port(self._host))
            try:
                self._launch(address)
            except AddressInUse:  # somebody took the port between our look and the server's bind
                self._end(watchdog.KILL, KILL_PATIENCE)
            else:
                return address
        address = TcpAddress(self._host, free_port(self._host))
        self._launch(address)
        return address

    def _launch(self, address: Address) -> None:
        """Start the watchdog, which starts the server, and wait until it serves on ``address``."""
        binary = find_binary(self._binary)
        address.make_ready()
        directory = self._directory()
        command = [
            # Of an argument given twice the last one counts: first what `extra` may change, then what it may not.
            *(str(binary), "--save", "", "--appendonly", "yes" if self._append_only else "no"),
            *("--appendfsync", "everysec", *self._extra),
            *("--daemonize", "no", "--protected-mode", "yes", "--dir", str(directory), "--logfile", ""),
            *address.arguments,
        ]
        with open_log(directory / LOG_NAME) as log:
            self._listening = address
            process = self._watchdog = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", watchdog.__file__, str(os.getpid())),
                    *("" if self._private is None else self._private.name, *command),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,
            )
        assert process.stdout is not None
        with process.stdout as answer:
            self._pid = int(answer.readline() or 0)  # nothing: the watchdog failed, and the log shows how
        fields = self._wait_until_ready(process, address, binary, directory / LOG_NAME)
        self._version = probe.version(fields)

    def _wait_until_ready(
        self, process: subprocess.Popen[bytes], address: Address, binary: Path, log: Path
    ) -> dict[str, str]:
        """What the server says about itself, once it serves."""
        reason = "it was not asked"
        deadline = time.monotonic() + self._start_timeout
        while time.monotonic() < deadline:
            if (status := process.poll()) is not None:
                raise _ended(binary, status, address, log)
            try:
                fields = probe.ask(address)
            except probe.NotReady as not_ready:
                reason = str(not_ready)
            else:
                # If the port is in use, its server may answer before ours has found that out and ended.
                if fields.get("process_id") == str(self._pid):
                    return fields
                reason = "another server answers there"
            time.sleep(PROBE_PAUSE)
        raise ServerError(
            f"The private server {binary} was not ready at {address.url} within {self._start_timeout:g} s "
            f"({reason}). With much data to load, give it more `start_timeout`. {last_words(log)}"
        )

    def _end(self, order: bytes, timeout: float) -> None:
        """Have the watchdog carry out ``order``, and wait until it and the server are gone.

        Arguments:
            timeout: seconds after which the server is killed.
        """
        process = self._watchdog
        if process is None:
            return
        assert process.stdin is not None
        if not (_carried_out(process, order, timeout) or _carried_out(process, watchdog.KILL, KILL_PATIENCE)):
            process.kill()  # the watchdog itself is stuck, as by SIGSTOP; on Linux the server goes with it
            process.wait()
        process.stdin.close()
        self._watchdog = None
        if self._listening is not None:
            self._listening.clear()
            self._listening = None

    def _directory(self) -> Path:
        if self._data_dir is not None:
            try:
                self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigurationError(f"The data directory {self._data_dir} cannot be made: {error}.") from error
            return self._data_dir
        if self._private is None:
            # Errors are ignored since the watchdog may remove it as well, when the program ends without `stop()`.
            self._private = tempfile.TemporaryDirectory(prefix="runnel-server-", ignore_cleanup_errors=True)
        return Path(self._private.name)

    def _forget(self) -> None:
        """Remove the private directory and give a free port back."""
        if self._private is not None:
            self._private.cleanup()
            self._private = None
        self._address = self._fixed


def _carried_out(process: subprocess.Popen[bytes], order: bytes, timeout: float) -> bool:
    """Give the watchdog an order; whether it and the server were gone within ``timeout`` seconds."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # they are gone already
        process.stdin.write(order)
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        return False
    return True


def _ended(binary: Path, status: int, address: Address, log: Path) -> ServerError:
    """The error for a server that ended before it was ready."""
    log_end = last_words(log)
    if "Address already in use" in log_end and isinstance(address, TcpAddress):
        return AddressInUse(
            f"Port {address.port} of {address.host} is already in use, so the private server could not start. Choose "
            f"another `port`, or None for a free one. {log_end}"
        )
    return ServerError(f"The private server {binary} ended with status {status} before it was ready. {log_end}")
