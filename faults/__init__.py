"""Faults: real worker processes, a real server and real faults, and a checker that reads the history afterwards.

``python -m faults`` runs a bounded mix of all faults, ``python -m faults F2 --seed 7`` one of them; see docs/faults.md.

``app`` is what the workers run and ``producer`` what sends; both write down what they do (``journal``). ``places`` has
the servers, ``stage`` them and the processes, ``watcher`` looks at the positions meanwhile, ``plays`` has the faults by
their number, ``proxy`` is a network that can be broken. ``history`` reads what was written down and ``dump`` what the
servers hold at the end; ``checker`` (with ``positions``) says what is wrong with it, ``known`` what excuses it.
``mutants`` are wrong on purpose, and ``leak`` is a long run without any of this.
"""
