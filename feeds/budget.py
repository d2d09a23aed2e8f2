"""One budget of REST requests for an exchange, shared by all who ask it: repair first, then audit, then warm-up.

How many requests a minute an exchange allows is kept by ccxt's limiter, first come, first served. Here is decided who
comes: a few requests at once, by priority and then by arrival, and none before the time that the exchange has named.
"""

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from enum import IntEnum
from itertools import count

AT_ONCE = 4
"""Requests under way at the same time: enough to hide the way there and back, too few to hold up a repair."""


class Priority(IntEnum):
    """What a request is for, the most urgent first."""

    REPAIR = 0
    AUDIT = 1
    WARM_UP = 2


_priority: ContextVar[Priority] = ContextVar("priority", default=Priority.WARM_UP)


@contextmanager
def asking_for(priority: Priority) -> Iterator[None]:
    """Give the requests of the block this priority."""
    token = _priority.set(priority)
    try:
        yield
    finally:
        _priority.reset(token)


class Budget:
    """Lets requests to one exchange pass."""

    def __init__(self, now_ns: Callable[[], int], *, blocked: Callable[[int], None] = lambda _: None) -> None:
        """Set up; `now_ns` is wall time, so that `blocked_until_ns`, told to `blocked`, outlives a restart."""
        self._now_ns, self._blocked = now_ns, blocked
        self.blocked_until_ns = 0
        """Wall time before which the exchange wants no request of ours."""
        self._under_way = 0
        self._waiting: list[tuple[Priority, int, asyncio.Future[None]]] = []
        self._arrivals = count()

    def block(self, for_s: float) -> None:
        """Note that the exchange wants no request for so long."""
        until_ns = self._now_ns() + int(for_s * 1e9)
        if until_ns > self.blocked_until_ns:
            self.blocked_until_ns = until_ns
            self._blocked(until_ns)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the right to make one request, and hold it for the block."""
        await self._come()
        try:
            while (wait_ns := self.blocked_until_ns - self._now_ns()) > 0:  # noqa: ASYNC110 (may be put off meanwhile)
                await asyncio.sleep(wait_ns / 1e9)
            yield
        finally:
            self._go()

    async def _come(self) -> None:
        if self._under_way < AT_ONCE:
            self._under_way += 1
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (_priority.get(), next(self._arrivals), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._go()  # the right had just been given
            raise

    def _go(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._under_way -= 1
