"""One budget of REST requests for an exchange, shared by all who ask it: repair first, then audit, then warm-up.

Who comes: a few requests at once, by priority and then by arrival, none before the time that the exchange has named.
How often: as ccxt's limiter has it, or where an exchange counts within a window `Pace`, which takes its place.
"""

import asyncio
import heapq
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from enum import IntEnum
from itertools import count
from typing import Any

AT_ONCE = 4
"""Requests under way at the same time: enough to hide the way there and back."""


class Priority(IntEnum):
    """What a request is for, the most urgent first."""

    REPAIR = 0
    AUDIT = 1
    WARM_UP = 2


_SHARES = {Priority.REPAIR: 1.0, Priority.AUDIT: 0.95, Priority.WARM_UP: 0.85}
"""How much of a window may be used when a request asks for more: a warm-up leaves something for a repair."""
_ROOM = {Priority.REPAIR: AT_ONCE + 2, Priority.AUDIT: AT_ONCE + 1, Priority.WARM_UP: AT_ONCE}
"""Requests under way up to which another one goes: those before it may be waiting for a pace that it need not wait for,
and however many audits and warm-ups do, a repair still comes through."""

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

    def __init__(self, *, weight: float, window_s: float, held_s: Callable[[], float] = lambda: 0.0) -> None:
        """Set up; `held_s` tells for how long nothing may be asked, whatever room there is."""
        self._weight, self._window_s, self._held_s = weight, window_s, held_s
        self._spent: deque[tuple[float, float]] = deque()
        self._used = 0.0

    async def __call__(self, cost: float | None = None) -> None:
        """Wait until a request of this weight may be made, and count it."""
        weight, time_s = 1.0 if cost is None else cost, asyncio.get_running_loop().time
        while (wait_s := self._left_s(weight, time_s())) > 0:  # noqa: ASYNC110 (time must pass)
            await asyncio.sleep(wait_s)
        self._spend(weight, time_s())

    def _left_s(self, weight: float, now_s: float) -> float:
        return max(self._held_s(), self.wait_s(weight, _priority.get(), now_s))

    def wait_s(self, weight: float, priority: Priority, now_s: float) -> float:
        """Return for how long at least there is no room for a request; 0 when there is."""
        while self._spent and self._spent[0][0] + self._window_s <= now_s:  # told apart as below, to the last bit
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

    def __init__(self, now_ns: Callable[[], int], *, blocked: Callable[[int, int], None] = lambda *_: None) -> None:
        """Set up; `blocked` is told since and until when by the wall clock `now_ns`, which outlives us, to wait."""
        self._now_ns, self._blocked = now_ns, blocked
        self.blocked_until_ns = 0
        """Wall time before which the exchange wants no request of ours, as far as that clock is right."""
        self._ends_s = -math.inf
        self._timer: asyncio.TimerHandle | None = None
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
            self.pace = self._windowed(config) if is_windowed else limiter
        return self.pace

    def _windowed(self, config: dict[str, Any]) -> Pace:
        window_s = config["windowSize"] / 1000
        return Pace(weight=config["maxWeight"], window_s=window_s, held_s=lambda: self.blocked_for_s)

    @property
    def blocked_for_s(self) -> float:
        """For how long the exchange wants no request of ours, by the loop's clock, which nobody sets."""
        return max(0.0, self._ends_s - asyncio.get_running_loop().time())

    def block(self, for_s: float) -> None:
        """Note that the exchange wants no request for so long."""
        ends_s = asyncio.get_running_loop().time() + for_s
        if ends_s > self._ends_s:
            now_ns = self._now_ns()
            self._ends_s, self.blocked_until_ns = ends_s, now_ns + round(for_s * 1e9)
            self._blocked(now_ns, self.blocked_until_ns)

    def remember(self, since_ns: int, until_ns: int) -> None:
        """Go on with a wait from before a start: with what the wall clock leaves of it.

        Where that clock was set back meanwhile it leaves too much: it is never more than was asked for.
        """
        left_ns = min(until_ns - self._now_ns(), until_ns - since_ns)
        if left_ns > 0:
            self.block(left_ns / 1e9)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the right to make one request, and hold it for the block."""
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (_priority.get(), next(self._arrivals), turn))
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():  # else it was never given
                self._under_way -= 1
                self._admit()

    def _admit(self) -> None:
        """Let go who may, the urgent first: while the exchange wants no request nobody may, and nobody takes room."""
        if (wait_s := self.blocked_for_s) > 0:
            if self._timer:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._admit)
            return
        while self._waiting and self._under_way < _ROOM[self._waiting[0][0]]:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                self._under_way += 1
                turn.set_result(None)
