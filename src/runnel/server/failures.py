"""How a private server can fail. Mistakes in its arguments are a ``ConfigurationError`` instead."""

from runnel.errors import RunnelError

__all__ = ["AddressInUse", "ServerError"]


class ServerError(RunnelError):
    """A private server did not start, or is not running."""


class AddressInUse(ServerError):
    """Somebody else listens where a private server should."""
