"""What Runnel does in Redis: the only package that imports redis-py.

Owns key names, scripts and connections, and translates redis-py's errors at this edge. Decides nothing: what it
returns is for ``_core`` to judge.
"""
