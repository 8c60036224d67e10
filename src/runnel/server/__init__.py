"""A private, real Valkey or Redis for development, the demo and tests.

::

    with EmbeddedServer() as server:
        print(server.url)  # redis://127.0.0.1:29431

``binary`` finds what to run, ``address`` is where it listens, ``probe`` asks whether it is ready, ``log`` is what it
says and locks its directory, ``watchdog`` makes it die with the program, and ``embedded`` puts them together.

Not for production: one process, reachable from this machine only, without a password. Nothing starts at import.
"""

from runnel.errors import AddressInUse, ServerError
from runnel.server.binary import find_binary
from runnel.server.embedded import EmbeddedServer

__all__ = ["AddressInUse", "EmbeddedServer", "ServerError", "find_binary"]
