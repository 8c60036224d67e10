"""The faults, by number."""

from faults.plays import failover, mix, network, poison, processes, servers, slow
from faults.plays.play import Play, Scene

__all__ = ["PLAYS", "SHORT", "Play", "Scene"]

_EVERY = (*processes.PLAYS, *servers.PLAYS, *failover.PLAYS, *network.PLAYS, *slow.PLAYS, *poison.PLAYS, *mix.PLAYS)

PLAYS: dict[str, Play] = {
    play.number: play for play in sorted(_EVERY, key=lambda play: (int(play.number[1:].split("-")[0]), play.number))
}

SHORT = ("F1", "F2", "F6", "F10", "F17")
"""What is played on every change."""
