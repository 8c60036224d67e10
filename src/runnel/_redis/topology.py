"""From a URL to where the servers are."""

from runnel._redis.cluster import ClusterEndpoint
from runnel._redis.link import Endpoint
from runnel._redis.sentinel import SentinelEndpoint

__all__ = ["endpoint_for"]


def endpoint_for(url: str) -> Endpoint:
    """Where the servers are that a URL names: one, one that sentinels watch, or the nodes of a cluster.

    Raises:
        ConfigurationError: it is not a URL that we understand.
    """
    kind = url.partition("://")[0].partition("+")[2]
    if kind == "sentinel":
        return SentinelEndpoint(url)
    if kind == "cluster":
        return ClusterEndpoint(url)
    return Endpoint(url)
