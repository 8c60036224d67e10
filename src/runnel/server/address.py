"""Where a private server listens: a port of the loopback interface, or a Unix socket. Never anywhere else."""

import ipaddress
import os
import random
import socket
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from runnel.errors import AddressInUse, ConfigurationError, ServerError

__all__ = ["Address", "TcpAddress", "UnixAddress", "free_port", "given_address", "loopback"]

FREE_PORTS = range(20_000, 32_768)
"""Where a free port is looked for: below the ports that Linux (from 32768) and macOS (from 49152) give to clients.

A port from ``bind(0)`` is one of those. While the server on it is down, (1) a client keeps trying to reconnect, (2) one
of its attempts gets that very port as its own, (3) TCP connects it to itself, and (4) the server cannot come back.
"""

UNIX_PATH_BYTES = 103 if sys.platform == "darwin" else 107
"""What fits into ``sun_path``, without the closing NUL. Some servers cut a longer path off silently."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A port of the loopback interface."""

    host: str
    """A numeric loopback address."""
    port: int

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"redis://{host}:{self.port}"

    @property
    def arguments(self) -> list[str]:
        """What tells the server to listen here and nowhere else."""
        return ["--bind", self.host, "--port", str(self.port), "--unixsocket", ""]

    def connect(self, timeout: float) -> socket.socket:
        """A connection, whose operations may each take ``timeout`` seconds."""
        return socket.create_connection((self.host, self.port), timeout)

    def make_ready(self) -> None:
        """Nothing to do: a server says by itself that its port is in use."""

    def clear(self) -> None:
        """Nothing stays of a port."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in the file system, for this user only."""

    path: Path
    """Absolute."""

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.path))}"

    @property
    def arguments(self) -> list[str]:
        """What tells the server to listen here and nowhere else."""
        return ["--port", "0", "--unixsocket", str(self.path), "--unixsocketperm", "700"]

    def connect(self, timeout: float) -> socket.socket:
        """A connection, whose operations may each take ``timeout`` seconds."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(str(self.path))
        except BaseException:
            connection.close()
            raise
        return connection

    def make_ready(self) -> None:
        """Refuse a path that is taken: a starting server removes whatever is there, also another server's socket.

        Raises:
            AddressInUse: a server listens there.
            ConfigurationError: something other than a socket is there, or the directory does not exist.
        """
        if not self.path.parent.is_dir():
            raise ConfigurationError(
                f"The Unix socket {self.path} cannot be made: there is no directory {self.path.parent}."
            )
        try:
            if not stat.S_ISSOCK(self.path.lstat().st_mode):
                raise ConfigurationError(
                    f"{self.path} is not a socket, and a server that should listen there would remove it. "
                    "Choose another `unix_socket`."
                )
            self.connect(timeout=1.0).close()
        except (FileNotFoundError, ConnectionRefusedError):
            return  # nothing there, or a socket that a killed server left behind
        except OSError as error:  # it exists and may be alive: no permission, no answer
            raise AddressInUse(f"The Unix socket {self.path} cannot be used: {error}.") from error
        raise AddressInUse(f"The Unix socket {self.path} is already in use. Choose another `unix_socket`.")

    def clear(self) -> None:
        """Remove the socket that a killed server left behind."""
        self.path.unlink(missing_ok=True)


Address = TcpAddress | UnixAddress


def loopback(host: str) -> str:
    """``host`` as a numeric address, if it is one of the loopback interface.

    Raises:
        ConfigurationError: it is not. The server has no password, so nobody else may reach it.
    """
    if host == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise ConfigurationError(
            f'A private server may not listen on "{host}": it has no password, so only this machine may reach it. '
            'Use host="127.0.0.1", or run a Valkey or Redis of your own and give its URL.'
        )
    return str(address)


def given_address(host: str, port: int | None, unix_socket: Path | None) -> Address | None:
    """Where the arguments of a server say that it listens; ``None``: on a free port.

    Raises:
        ConfigurationError: they do not go together, or are unusable.
    """
    if unix_socket is not None:
        if port is not None:
            raise ConfigurationError("A private server listens on a `port` or on a `unix_socket`: give one of them.")
        path = unix_socket.absolute()
        if len(os.fsencode(path)) > UNIX_PATH_BYTES:
            raise ConfigurationError(
                f"The path of a Unix socket may have {UNIX_PATH_BYTES} bytes, and {path} has {len(os.fsencode(path))}. "
                "Choose a shorter one, for example in /tmp."
            )
        return UnixAddress(path)
    if port is None:
        return None
    if not 0 < port < 65_536:
        raise ConfigurationError(f"{port} is no TCP port. Give one from 1 to 65535, or None for a free one.")
    return TcpAddress(host, port)


def free_port(host: str) -> int:
    """A port of ``host`` that nobody listens on at the moment. Somebody may, before the caller does.

    Raises:
        ServerError: none was found.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The system's randomness: forked test processes share the state of the usual one and would choose alike.
    for port in random.SystemRandom().sample(FREE_PORTS, 100):
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            try:
                trial.bind((host, port))
            except OSError as error:
                reason = error
            else:
                return port
    raise ServerError(f"No free port found on {host}; the last one tried: {reason}.")
