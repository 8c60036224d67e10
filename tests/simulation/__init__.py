"""Workers, producers and faults, played without processes on the clock of a test; the scripts and the server are real.

What is simulated mirrors ``runnel._worker`` and ``runnel._redis.producer`` through the same pure functions. What waits
there is a call here: a command that is repeated until its answer is known.

========================  ==============================================================================
``laboratory``            a server whose clock, connections and run id the test sets; scripts made wrong
``calls``                 what becomes of a command on its way
``seats``, ``owners``,    a member: its heartbeats, the life of its partitions, and its work on them
``members``
``producers``             who sends, with a lane per partition
``damage``                what destroys data: deletions, roll-backs, resets
``world``                 all of them together, and the time
``judge``                 what must be true after every step
``schedules``             who does what next, drawn at random
``mutants``               ways to be wrong, each of which must be found
========================  ==============================================================================
"""
