"""Faults of events and handlers: slow ones, and those that cannot be processed."""

PLAYS = ()
