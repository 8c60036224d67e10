"""What ``runnel demo`` runs: a month of real flights, two workers, one of them killed half-way, and a verdict.

Read ``app`` first, which is the app that the workers run, and ``verdict``, which says what must not happen. ``flights``
is the data, ``carryover`` the computation, ``journal`` what the workers write down, ``team`` the worker processes,
``screen`` what is shown, and ``play`` puts them together.
"""

from runnel.demo.play import run

__all__ = ["run"]
