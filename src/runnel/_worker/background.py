"""Background tasks, timers and crontabs, and the leadership that some of them need."""

import asyncio
import secrets
import time

from runnel._core.lease import Lease
from runnel._redis.keys import ControlKeys
from runnel._redis.link import Endpoint
from runnel._redis.patience import patiently
from runnel._redis.scripts import Beat, claim
from runnel._worker.heartbeats import Heartbeats, Holder
from runnel._worker.member import seat
from runnel.instruments import Instruments, TaskFailed
from runnel.settings import Settings
from runnel.tasks import BackgroundTask, Startup

__all__ = ["Background"]

LONGEST_SLEEP = 30.0
"""Seconds. Sleeping towards a time of day in steps keeps up with a clock that is set."""


class Background:
    """Runs the background tasks of one worker.

    Leadership is the one partition of a group of its own, so it is granted, revoked, and taken from the dead, as any
    partition is. Each tick of a leader's timer or crontab is claimed in Redis, so it runs once even while the
    leadership moves: a new leader takes over a tick that fell into the change.
    """

    def __init__(
        self,
        name: str,
        tasks: list[BackgroundTask],
        endpoint: Endpoint,
        settings: Settings,
        instruments: Instruments,
    ) -> None:
        """Arguments:
        name: of the worker.
        tasks: what to run.
        endpoint: where Redis is.
        settings: of the app.
        instruments: where to announce.
        """
        self._app = settings.name
        self._tasks = tasks
        self._session = settings.session_timeout
        self._grace = settings.grace_period
        self._instruments = instruments
        self._link = endpoint.link()
        self._leads = asyncio.Event()
        self._answered = asyncio.Event()
        self._token: int | None = None
        self._running: list[asyncio.Task[None]] = []
        self._startups: list[asyncio.Task[None]] = []
        self._ticking: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._heartbeats: Heartbeats
        self.holder: Holder | None = None
        if any(task.on_leader for task in tasks):
            keys = ControlKeys.of_leader(settings.name)
            self.holder = Holder("leader", seat(keys, name, 1, settings), self._on_beat)

    def start(self, heartbeats: Heartbeats) -> None:
        """Start the tasks that every worker runs, and the schedules of all."""
        self._heartbeats = heartbeats
        for task in self._tasks:
            if not isinstance(task, Startup):
                self._running.append(asyncio.create_task(self._schedule(task), name=f"runnel-{task.name}"))
            elif not task.on_leader:
                self._running.append(asyncio.create_task(self._run(task), name=f"runnel-{task.name}"))

    async def stop(self) -> None:
        """Let timers and crontabs that are at work finish, within the grace period; cancel the rest; resign."""
        self._stopping = True
        if self.holder is not None:
            self.holder.draining = True
        for task in {*self._running, *self._startups} - self._ticking:
            task.cancel()
        if self._ticking:  # their tick is claimed: nobody else will run it
            await asyncio.wait(self._ticking, timeout=self._grace)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, *self._startups, return_exceptions=True)
        self._resign()
        await self._link.close()

    def abort(self) -> None:
        """Do not wait for timers and crontabs that are at work."""
        for task in self._running:
            task.cancel()

    def _on_beat(self, beat: Beat, lease: Lease) -> None:
        """Leadership as a partition: 0 is granted, revoked, or lost."""
        if not beat.known:
            self._resign()
        elif beat.full:
            token = beat.granted.get(0)
            if token is not None and token != self._token and self.holder is not None and not self.holder.draining:
                self._resign()
                self._token = token
                self._leads.set()
                startups = [task for task in self._tasks if isinstance(task, Startup) and task.on_leader]
                self._startups = [asyncio.create_task(self._lead(task, lease)) for task in startups]
            elif token is None and not (self._stopping and beat.revoked.get(0) == self._token):
                self._resign()  # a stop does so itself, when the ticks that are at work have ended
        self._answered.set()

    def _resign(self) -> None:
        self._leads.clear()
        for task in self._startups:
            task.cancel()
        self._startups = []
        token, self._token = self._token, None
        if token is not None and self.holder is not None:
            self.holder.releases.append((0, token))
            self._heartbeats.nudge(self.holder)

    async def _lead(self, task: Startup, lease: Lease) -> None:
        """Run a startup task of the leader.

        1. Begin while the lease lasts.
        2. Run until the task ends.
        3. If the lease ends before, nobody has told us for long that we lead, and another worker may be about to:
           cancel the task, and begin it again when the lease is renewed. If we lead no more, we are cancelled here.
        """
        while True:
            while time.monotonic() >= lease.deadline:
                self._answered.clear()
                await self._answered.wait()
            running = asyncio.create_task(self._run(task), name=f"runnel-{task.name}")  # 1
            try:
                while (left := lease.deadline - time.monotonic()) > 0:
                    await asyncio.wait([running], timeout=left)  # 2
                    if running.done():
                        return
            finally:
                running.cancel()  # 3
                await asyncio.wait([running])

    async def _schedule(self, task: BackgroundTask) -> None:
        """Run a timer or crontab at its ticks, for ever.

        1. Sleep until the next tick.
        2. On the leader: claim the tick. A worker that becomes the leader soon after the tick claims it too, in case
           the old leader died with it.
        3. Run. Ticks that fall into the run are skipped.
        4. Not on the leader: go on with the tick after this one. It may be due already, since it is what has ended the
           wait, and the leadership may still come soon after it.
        """
        after = time.time()
        phase = 0.0 if task.on_leader else after
        while (tick := task.next_tick(after, phase)) is not None:
            while (wait := tick - time.time()) > 0:  # noqa: ASYNC110  nobody could set an event for a time of day
                await asyncio.sleep(min(wait, LONGEST_SLEEP))  # 1
            if not task.on_leader or await self._leads_for(task, tick):
                await self._tick(task, tick)  # 2, 3
                after = time.time()
            else:
                after = max(tick, time.time() - self._session)  # 4
            if self._stopping:
                return

    async def _tick(self, task: BackgroundTask, tick: float) -> None:
        """Claim and run, as one: a stop in between would lose a tick that nobody else can claim any more."""
        me = asyncio.current_task()
        assert me is not None
        self._ticking.add(me)
        try:
            if not task.on_leader or await self._claim(task, tick):
                await self._run(task)
        finally:
            self._ticking.discard(me)

    async def _leads_for(self, task: BackgroundTask, tick: float) -> bool:
        """Whether this worker is the leader, or becomes it before the tick is out of date."""
        following = task.next_tick(tick, 0.0)
        until = tick + self._session if following is None else min(tick + self._session, following)
        try:
            async with asyncio.timeout(max(0.0, until - time.time())):
                await self._leads.wait()
        except TimeoutError:
            return False
        return True

    async def _claim(self, task: BackgroundTask, tick: float) -> bool:
        nonce = secrets.token_hex(8)

        async def attempt() -> bool:
            return await claim(self._link, self._app, task.name, int(tick * 1000), nonce)

        return await patiently(f"tick of {task.name}", attempt, self._instruments)

    async def _run(self, task: BackgroundTask) -> None:
        try:
            await task.function()
        except asyncio.CancelledError as error:
            me = asyncio.current_task()
            if me is None or me.cancelling():
                raise
            self._instruments.announce(TaskFailed(task.name, error))  # raised by the user's own code
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in Rust, for instance, is no Exception; a schedule outlives it too
            self._instruments.announce(TaskFailed(task.name, error))
