"""The faults, by number."""

from faults.plays import network, processes, servers
from faults.plays.play import Play, Scene

__all__ = ["PLAYS", "SHORT", "Play", "Scene"]

PLAYS: dict[str, Play] = {play.number: play for play in (*processes.PLAYS, *servers.PLAYS, *network.PLAYS)}
PLAYS = dict(sorted(PLAYS.items(), key=lambda item: (int(item[0][1:].split("-")[0]), item[0])))

SHORT = ("F1", "F2", "F6", "F10", "F17")
"""What is played on every change."""
