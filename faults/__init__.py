"""Faults: real worker processes, a real server and real faults, and a checker that reads the history afterwards.

``python -m faults`` runs a bounded mix of all faults, ``python -m faults F2 --seed 7`` one of them.

``app`` is what the workers run and ``producer`` what sends; both write down what they do (``journal``). ``stage`` holds
the processes and the server, ``plays`` the faults by their number, ``proxy`` a network that can be broken. ``history``
reads what was written down, and ``checker`` says what is wrong with it.
"""
