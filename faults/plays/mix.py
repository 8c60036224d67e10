"""All of it."""

PLAYS = ()
