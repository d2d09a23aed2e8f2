import asyncio

import pytest

from feeds.budget import AT_ONCE, Budget, Priority, asking_for
from tests.feeds.test_transport import until

NOW_NS = 1_700_000_000_000_000_000


class Requests:
    def __init__(self, budget: Budget) -> None:
        self.budget, self.order = budget, list[str]()
        self.release = asyncio.Semaphore(0)

    async def ask(self, name: str, priority: Priority | None) -> None:
        if priority is None:
            await self._ask(name)
            return
        with asking_for(priority):
            await self._ask(name)

    async def _ask(self, name: str) -> None:
        async with self.budget.turn():
            self.order.append(name)
            await self.release.acquire()


async def test_the_urgent_go_first_and_equals_by_arrival() -> None:
    requests = Requests(Budget(lambda: NOW_NS))
    busy = [asyncio.create_task(requests.ask(f"busy {n}", None)) for n in range(AT_ONCE)]
    await until(lambda: len(requests.order) == AT_ONCE)
    asked = [("warm 1", None), ("audit", Priority.AUDIT), ("warm 2", None), ("repair 1", Priority.REPAIR)]
    tasks = [asyncio.create_task(requests.ask(name, priority)) for name, priority in asked]
    tasks.append(asyncio.create_task(requests.ask("repair 2", Priority.REPAIR)))
    await asyncio.sleep(0)
    for n in range(len(tasks)):
        requests.release.release()
        await until(lambda n=n: len(requests.order) == AT_ONCE + n + 1)  # type: ignore[misc]
    for _ in range(AT_ONCE):
        requests.release.release()
    await asyncio.gather(*busy, *tasks)
    assert requests.order[AT_ONCE:] == ["repair 1", "repair 2", "audit", "warm 1", "warm 2"]


async def test_nobody_asks_before_the_time_that_the_exchange_named() -> None:
    now_ns, told = NOW_NS, list[int]()
    budget = Budget(lambda: now_ns, blocked=told.append)
    requests = Requests(budget)
    budget.block(0.05)
    budget.block(0.01)
    assert told == [NOW_NS + 50_000_000]
    task = asyncio.create_task(requests.ask("a", None))
    await asyncio.sleep(0.1)
    assert requests.order == [], "the wall clock stands still"
    now_ns += 60_000_000
    requests.release.release()
    await task
    assert requests.order == ["a"]


async def test_a_wall_clock_set_back_makes_no_wait_longer_than_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feeds.budget.SLACK_S", 0.0)
    monkeypatch.setattr("feeds.budget.REMEMBERED_S", 0.05)
    now_ns = NOW_NS
    budget = Budget(lambda: now_ns)
    budget.block(0.05)
    now_ns -= 86_400 * 10**9
    restarted = Budget(lambda: now_ns)
    restarted.blocked_until_ns = budget.blocked_until_ns
    for waiting in (budget, restarted):
        requests = Requests(waiting)
        requests.release.release()
        async with asyncio.timeout(30):
            await requests.ask("a", None)
        assert requests.order == ["a"]


async def test_one_that_gives_up_waiting_takes_no_turn() -> None:
    requests = Requests(Budget(lambda: NOW_NS))
    busy = [asyncio.create_task(requests.ask(f"busy {n}", None)) for n in range(AT_ONCE)]
    await until(lambda: len(requests.order) == AT_ONCE)
    gone, then = (asyncio.create_task(requests.ask(name, None)) for name in ("gone", "then"))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    for _ in range(AT_ONCE + 1):
        requests.release.release()
    await asyncio.gather(*busy, then)
    assert requests.order[AT_ONCE:] == ["then"]
    requests.release.release()
    await requests.ask("free again", None)
