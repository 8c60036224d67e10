"""Real servers in the arrangements that Runnel runs on: a cluster, and a primary with sentinels. Made by commands.

For the tests and for the fault suite. ``asking`` talks to one server, ``cluster`` and ``sentinels`` start several.
"""

from topologies.asking import HOST, ask, facts, port_of, until
from topologies.cluster import Cluster
from topologies.sentinels import Sentinel, Watched

__all__ = ["HOST", "Cluster", "Sentinel", "Watched", "ask", "facts", "port_of", "until"]
