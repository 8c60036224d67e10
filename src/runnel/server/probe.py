"""Asks a server whether it is ready and who it is, with a bare socket: this package does without a client library."""

from runnel.server.address import Address

__all__ = ["NotReady", "ask", "version"]

PATIENCE = 1.0
"""Seconds that one step of a question may take. On the same machine an idle server answers in under a millisecond."""


class NotReady(Exception):
    """The server does not serve yet. The text is its own reason, such as ``LOADING``, or the operating system's."""


def ask(address: Address) -> dict[str, str]:
    """The fields of the server's ``INFO server``, once it answers ``PING``.

    Raises:
        NotReady: there is no answer, or another one than ``PONG``.
    """
    try:
        with address.connect(PATIENCE) as connection, connection.makefile("rb") as answers:
            connection.sendall(b"PING\r\n")
            pong = answers.readline()
            if pong != b"+PONG\r\n":
                raise NotReady(pong.decode(errors="replace").strip().removeprefix("-") or "connection closed")
            connection.sendall(b"INFO server\r\n")
            header = answers.readline()
            if not header.startswith(b"$"):
                raise NotReady(header.decode(errors="replace").strip().removeprefix("-") or "connection closed")
            body = answers.read(int(header[1:])).decode()
    except OSError as error:
        raise NotReady(str(error)) from error
    return dict(line.split(":", 1) for line in body.splitlines() if ":" in line)


def version(fields: dict[str, str]) -> str:
    """The server's name and version, such as ``Valkey 9.1.2``.

    Valkey also gives a ``redis_version``, the one that it is compatible with, so its own name comes first.
    """
    if "valkey_version" in fields:
        return f"Valkey {fields['valkey_version']}"
    return f"Redis {fields.get('redis_version', 'of unknown version')}"
