"""An exchange's REST side as a feed needs it: asked until it answers, and what is in the way said once."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import TypeVar

from structlog.typing import FilteringBoundLogger

from daemon import clock, topics
from daemon.store import Store
from feeds.backoff import Backoff
from feeds.budget import Budget, Priority, asking_for
from feeds.errors import FORBIDDEN_S, Forbidden, RateLimited, RemoteError
from feeds.history import History

SINCE = " since"
"""Behind an exchange's name in the store: when it named the time."""
CAP_S = 5.0
"""Longest pause between two tries; the exchange's own word on limits goes before."""
_T = TypeVar("_T")


class Budgets:
    """One budget of requests per exchange and address, whatever the number of feeds; it outlives restarts."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._budgets: dict[str, Budget] = {}

    def of(self, exchange: str, rest_url: str | None) -> Budget:
        """Return the budget of an exchange, blocked as it was when the daemon stopped."""
        name = f"{exchange} {rest_url or ''}".strip()
        if name not in self._budgets:
            budget = Budget(clock.now_ns, blocked=functools.partial(self._keep, name))
            budget.remember(self._store.blocked_until_ns(name + SINCE), self._store.blocked_until_ns(name))
            self._budgets[name] = budget
        return self._budgets[name]

    def _keep(self, name: str, since_ns: int, until_ns: int) -> None:
        self._store.keep_blocked(name + SINCE, since_ns)
        self._store.keep_blocked(name, until_ns)


class Source:
    """The history of one feed's exchange."""

    def __init__(self, history: History, log: FilteringBoundLogger, *, hindered: Callable[[], None]) -> None:
        """Set up; `hindered` is called when the exchange has failed to answer: who waits for it may wait long."""
        self.history = history
        self.obstacle = ""
        """What is in the way; empty while the exchange answers."""
        self.forbidden = False
        """Whether the exchange refuses to serve us at all."""
        self._log, self._tell = log, hindered
        self._failing = 0

    async def insist(self, ask: Callable[[], Awaitable[_T]], priority: Priority = Priority.WARM_UP) -> _T:
        """Ask until the exchange answers; say once that it does not, and once that it does again.

        Raises:
            RequestRefused: the exchange finds the request itself wrong.

        """
        backoff, failed = Backoff(clock.rng(), cap_s=CAP_S), False
        try:
            while True:
                began_s = clock.monotonic_s()
                if (blocked := self._blocked()) and not failed:
                    self._failing, failed = self._failing + 1, True
                    self._hindered(blocked)
                try:
                    with asking_for(priority):
                        return await ask()
                except RemoteError as error:
                    self._failing += not failed
                    failed = True
                    self._hindered(error)
                    wait_s = backoff.delay_s(live_s=0.0, since_attempt_s=clock.monotonic_s() - began_s)
                    await asyncio.sleep(max(wait_s, _pause_s(error)))
        finally:
            self._failing -= failed
            if failed and not self._failing and self.obstacle:
                self.obstacle, self.forbidden = "", False
                self._log.info("history_restored")

    def _blocked(self) -> RateLimited | None:
        """Say that the exchange wants no request yet, as it told us or the daemon before us."""
        budget = self.history.budget
        if budget is None or not (wait_s := budget.blocked_for_s):
            return None
        until = topics.rfc3339(budget.blocked_until_ns)
        return RateLimited(f"no request is wanted before {until}", retry_after_s=wait_s)

    def _hindered(self, error: RemoteError) -> None:
        if not self.obstacle:
            self._log.warning("history_unreachable", reason=str(error))
        self.forbidden = isinstance(error, Forbidden)
        self.obstacle = f"refused: {error}" if self.forbidden else f"history unreachable: {error}"
        self._tell()


def _pause_s(error: RemoteError) -> float:
    if isinstance(error, RateLimited):
        return error.retry_after_s
    return FORBIDDEN_S if isinstance(error, Forbidden) else 0.0
