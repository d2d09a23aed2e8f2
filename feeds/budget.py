"""One budget of REST requests for an exchange, shared by all who ask it: repair first, then audit, then warm-up.

Who comes: a few requests at once, by priority and then by arrival, none before the time that the exchange has named.
How often: as ccxt's limiter has it, or where an exchange counts within a window `Pace`, which takes its place.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from enum import IntEnum
from itertools import count
from typing import Any

AT_ONCE = 4
"""Requests under way at the same time: enough to hide the way there and back."""
SPARE = 2
"""As many more for what is urgent, as the others may be waiting for their pace."""

SLACK_S = 10.0
"""How much longer than was asked for a wait may last because the wall clock was set back."""
REMEMBERED_S = 300.0
"""For how long a wait from before a start is believed, as nobody knows what the wall clock has done meanwhile: to ask
too early costs one more refusal, which names the time anew."""


class Priority(IntEnum):
    """What a request is for, the most urgent first."""

    REPAIR = 0
    AUDIT = 1
    WARM_UP = 2


_SHARES = {Priority.REPAIR: 1.0, Priority.AUDIT: 0.95, Priority.WARM_UP: 0.85}
"""How much of a window may be used when a request asks for more: a warm-up leaves something for a repair."""


_priority: ContextVar[Priority] = ContextVar("priority", default=Priority.WARM_UP)


@contextmanager
def asking_for(priority: Priority) -> Iterator[None]:
    """Give the requests of the block this priority."""
    token = _priority.set(priority)
    try:
        yield
    finally:
        _priority.reset(token)


class Pace:
    """So much weight in any span of `window_s`, whoever asks. Called as ccxt's limiters are."""

    def __init__(self, *, weight: float, window_s: float) -> None:
        self._weight, self._window_s = weight, window_s
        self._spent: deque[tuple[float, float]] = deque()
        self._used = 0.0

    async def __call__(self, cost: float | None = None) -> None:
        """Wait until a request of this weight may be made, and count it."""
        weight, time_s = 1.0 if cost is None else cost, asyncio.get_running_loop().time
        while (wait_s := self.wait_s(weight, _priority.get(), time_s())) > 0:  # noqa: ASYNC110 (time must pass)
            await asyncio.sleep(wait_s)
        self._spend(weight, time_s())

    def wait_s(self, weight: float, priority: Priority, now_s: float) -> float:
        """Return for how long at least there is no room for a request; 0 when there is."""
        while self._spent and self._spent[0][0] <= now_s - self._window_s:
            self._used -= self._spent.popleft()[1]
        if not self._spent or self._used + weight <= self._weight * _SHARES[priority]:
            return 0.0
        return self._spent[0][0] + self._window_s - now_s

    def heard(self, used: float, now_s: float) -> None:
        """Note what the exchange has counted lately: more than is known here was asked by others, or before a start."""
        if used > self._used:
            self._spend(used - self._used, now_s)

    def _spend(self, weight: float, now_s: float) -> None:
        self._spent.append((now_s, weight))
        self._used += weight


class Budget:
    """Lets requests to one exchange pass."""

    def __init__(self, now_ns: Callable[[], int], *, blocked: Callable[[int], None] = lambda _: None) -> None:
        """Set up; `now_ns` is wall time, so that `blocked_until_ns`, told to `blocked`, outlives a restart."""
        self._now_ns, self._blocked = now_ns, blocked
        self.blocked_until_ns = 0
        """Wall time before which the exchange wants no request of ours."""
        self._ends_s: float | None = None
        self.pace: Any = None
        """What all who ask the exchange wait for before each request, see `share`."""
        self._under_way = 0
        self._waiting: list[tuple[Priority, int, asyncio.Future[None]]] = []
        self._arrivals = count()

    def share(self, limiter: Any) -> Any:
        """Return the limiter for a client of this exchange: that of the first, in whose place a `Pace` may come."""
        if self.pace is None:
            config = getattr(limiter, "config", {})
            is_windowed = config.get("algorithm") == "rollingWindow"
            self.pace = (
                Pace(weight=config["maxWeight"], window_s=config["windowSize"] / 1000) if is_windowed else limiter
            )
        return self.pace

    @property
    def blocked_for_s(self) -> float:
        """For how long the exchange wants no request of ours; by the loop's clock it ends, too."""
        time_s = asyncio.get_running_loop().time()
        if self._ends_s is None:
            self._ends_s = time_s + REMEMBERED_S
        return max(0.0, min((self.blocked_until_ns - self._now_ns()) / 1e9, self._ends_s - time_s))

    def block(self, for_s: float) -> None:
        """Note that the exchange wants no request for so long."""
        self._ends_s = max(self._ends_s or 0.0, asyncio.get_running_loop().time() + for_s + SLACK_S)
        until_ns = self._now_ns() + int(for_s * 1e9)
        if until_ns > self.blocked_until_ns:
            self.blocked_until_ns = until_ns
            self._blocked(until_ns)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the right to make one request, and hold it for the block."""
        await self._come()
        try:
            while (wait_s := self.blocked_for_s) > 0:  # noqa: ASYNC110 (may be put off meanwhile)
                await asyncio.sleep(wait_s)
            yield
        finally:
            self._go()

    async def _come(self) -> None:
        priority = _priority.get()
        if self._under_way < _room(priority):
            self._under_way += 1
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._arrivals), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._go()  # the right had just been given
            raise

    def _go(self) -> None:
        self._under_way -= 1
        while self._waiting and self._under_way < _room(self._waiting[0][0]):
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                self._under_way += 1
                turn.set_result(None)
                return


def _room(priority: Priority) -> int:
    return AT_ONCE if priority is Priority.WARM_UP else AT_ONCE + SPARE
