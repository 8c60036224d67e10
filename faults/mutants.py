"""Breaks the product on purpose, in a process that is about to run it: the checker has to notice each of these."""


def mutate(name: str) -> None:
    """Apply a mutant."""
    raise NotImplementedError(name)
