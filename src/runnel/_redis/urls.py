"""URLs that name servers: one, or several, of which each may have the key."""

from urllib.parse import urlsplit, urlunsplit

from runnel.errors import ConfigurationError

__all__ = ["bad_url", "each_host", "masked", "not_a_url"]

_FORMS = "redis://127.0.0.1:6379, redis+sentinel://HOST:26379,HOST:26379/SERVICE or redis+cluster://HOST:6379,HOST:6379"


def masked(url: str) -> str:
    """``url`` with its passwords replaced, for logs and messages."""
    try:
        parts = urlsplit(url)
        if parts.password is None and "password=" not in parts.query:
            return url
        host = parts.netloc.rpartition("@")[2]
        user = f"{parts.username or ''}:***@" if parts.password is not None else ""
        query = "&".join(_without_password(item) for item in parts.query.split("&"))
        return urlunsplit((parts.scheme, user + host, parts.path, query, ""))
    except ValueError:
        return "the given URL"


def _without_password(item: str) -> str:
    name, equals, _ = item.partition("=")
    return f"{name}=***" if equals and name.endswith("password") else item


def bad_url(url: str, why: str) -> ConfigurationError:
    """What to raise for a URL that cannot be meant."""
    return ConfigurationError(f'"{masked(url)}" {why}. For example: {_FORMS}')


def not_a_url(url: str, error: ValueError) -> ConfigurationError:
    """What to raise for what redis-py refuses."""
    return bad_url(url, f"is not a Redis URL ({error})")


def each_host(url: str, port: int) -> tuple[list[str], list[str]]:
    """A URL of several servers as one of each, in the form that redis-py takes, and the parts of its path.

    ``redis+cluster://u:p@a:1,b/0?x=y`` with the port 6379 is ``redis://u:p@a:1?x=y`` and ``redis://u:p@b:6379?x=y``,
    and ``["0"]``.

    Arguments:
        url: with ``+sentinel`` or ``+cluster`` in its scheme.
        port: of hosts without one.

    Raises:
        ConfigurationError: a host or a port is missing or senseless.
    """
    try:
        parts = urlsplit(url)
        scheme = parts.scheme.partition("+")[0]
        user, at, hosts = parts.netloc.rpartition("@")
        urls = []
        for host in hosts.split(","):
            one = urlsplit(f"{scheme}://{host}")
            if not one.hostname:
                raise ValueError("a host is missing")
            full = host if one.port is not None else f"{host.rstrip(':')}:{port}"
            urls.append(urlunsplit((scheme, f"{user}{at}{full}", "", parts.query, "")))
    except ValueError as error:
        raise not_a_url(url, error) from None
    return urls, [part for part in parts.path.split("/") if part]
