"""Middleware that comes with Runnel."""

from runnel.interfaces import Middleware
from runnel.middleware.dead_letter import DeadLetterMiddleware

__all__ = ["DeadLetterMiddleware", "Middleware"]
