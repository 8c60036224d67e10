"""Distributed, strictly ordered event processing for Python on Redis Streams.

Start with :class:`App`. The guide is in ``docs/guide.md``.
"""

from runnel.app import App
from runnel.constants import ExceptionPolicy
from runnel.events import Event, Events
from runnel.records import Record

__all__ = ["App", "Event", "Events", "ExceptionPolicy", "Record"]
__version__ = "0.1.0"
