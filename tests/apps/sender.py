"""A producer of the process tests: sends to the app of ``recorder.py`` for as long as it lives.

Each key is its own, and counts from 0. What was confirmed is a line in a file outside Redis: key and number.
"""

import asyncio
import os

from recorder import Step, app, steps

confirmed = os.open(os.environ["TEST_CONFIRMED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
KEYS = 16


async def main() -> None:
    """Send one event of each key at a time, all at once, as the requests of a web server would."""
    number = 0
    async with app:
        while True:
            await asyncio.gather(*(send(f"{os.getpid()}-{n}", number) for n in range(KEYS)))
            number += 1
            await asyncio.sleep(0.05)


async def send(key: str, number: int) -> None:
    """Send one event, and note that it was confirmed."""
    await steps.send(Step(key=key, number=number))
    os.write(confirmed, f"{key} {number}\n".encode())


asyncio.run(main())
