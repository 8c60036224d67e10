"""Tracebacks as users want them: of their own code."""

import traceback
from pathlib import Path

from runnel.errors import RunnelError

__all__ = ["user_traceback"]

_PACKAGE = str(Path(__file__).parent.parent)


def user_traceback(error: BaseException) -> str:
    """The traceback of an error, beginning where the user's code does. Empty for an error of ours without any."""
    frames = traceback.extract_tb(error.__traceback__)
    while frames and frames[0].filename.startswith(_PACKAGE):
        del frames[0]
    if not frames:
        return "" if isinstance(error, RunnelError) else "".join(traceback.format_exception(error)).rstrip()
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames)]
    return "".join(lines + traceback.format_exception_only(error)).rstrip()
