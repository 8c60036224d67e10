"""A time of day that can be set, for one server; see ``clock.c``."""

import shutil
import struct
import subprocess
import time
from pathlib import Path

__all__ = ["Clock"]

SIZE = 4096
MICROSECONDS = 1_000_000


class Clock:
    """Begins with the real time.

    Attributes:
        wrapper: a program that starts a server with this clock.
    """

    def __init__(self, directory: Path, server: str | Path) -> None:
        """Arguments:
        directory: for its files.
        server: the server program; must not be linked statically.

        Raises:
            FileNotFoundError: there is no C compiler.
        """
        compiler = shutil.which("cc")
        if compiler is None:
            raise FileNotFoundError("A C compiler is needed: apt install gcc libc6-dev")
        library = directory / "clock.so"
        source = Path(__file__).with_suffix(".c")
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
        self._settings = directory / "clock"
        self._settings.write_bytes(bytes(SIZE))
        self._number = 0
        self.wrapper = directory / "server-in-another-time"
        self.wrapper.write_text(f'#!/bin/sh\nexport LD_PRELOAD={library} CLOCK={self._settings}\nexec {server} "$@"\n')
        self.wrapper.chmod(0o700)

    def set(self, ahead: float, factor: int = 1) -> None:
        """From now on it is so many seconds ahead of the real time, and goes on so many times as fast."""
        now = time.time_ns() // 1000
        setting = struct.pack("3q", now, now + int(ahead * MICROSECONDS), factor)
        with self._settings.open("r+b") as file:
            file.seek(8 + len(setting) * self._number)
            file.write(setting)
            file.flush()  # before it counts
            self._number += 1
            file.seek(0)
            file.write(struct.pack("q", self._number))
