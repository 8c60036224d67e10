"""What Runnel decides: plain functions and small values, without waiting and without Redis.

Time and randomness are arguments. Everything here can be tested without an event loop.
"""
