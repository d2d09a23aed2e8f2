import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds.budget import AT_ONCE, SPARE, Budget, Pace, Priority, asking_for
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
    busy += [asyncio.create_task(requests.ask(f"spare {n}", Priority.AUDIT)) for n in range(SPARE)]
    await until(lambda: len(requests.order) == AT_ONCE + SPARE)
    asked = [("warm 1", None), ("audit", Priority.AUDIT), ("warm 2", None), ("repair 1", Priority.REPAIR)]
    tasks = [asyncio.create_task(requests.ask(name, priority)) for name, priority in asked]
    tasks.append(asyncio.create_task(requests.ask("repair 2", Priority.REPAIR)))
    await asyncio.sleep(0)
    for _ in range(len(busy) + len(tasks)):
        requests.release.release()
    await asyncio.gather(*busy, *tasks)
    assert requests.order[AT_ONCE + SPARE :] == ["repair 1", "repair 2", "audit", "warm 1", "warm 2"]


async def test_a_repair_does_not_wait_until_a_warm_up_is_done() -> None:
    requests = Requests(Budget(lambda: NOW_NS))
    tasks = [asyncio.create_task(requests.ask(f"warm {n}", None)) for n in range(AT_ONCE + 1)]
    await until(lambda: len(requests.order) == AT_ONCE)
    tasks.append(asyncio.create_task(requests.ask("repair", Priority.REPAIR)))
    await until(lambda: len(requests.order) == AT_ONCE + 1)
    assert requests.order[-1] == "repair"
    for _ in tasks:
        requests.release.release()
    await asyncio.gather(*tasks)


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


asks = st.tuples(st.floats(0, 30), st.sampled_from([1, 2, 5, 10, 20]), st.sampled_from(Priority))


@given(asked=st.lists(asks, min_size=1, max_size=200), heard=st.integers(0, 120))
def test_no_window_holds_more_than_its_weight_and_a_warm_up_leaves_some(
    asked: list[tuple[float, int, Priority]], heard: int
) -> None:
    pace, now_s = Pace(weight=100, window_s=60), 0.0
    pace.heard(heard, 0.0)
    spent: list[tuple[float, int]] = [(0.0, heard)]
    for pause_s, weight, priority in asked:
        now_s += pause_s
        while (wait_s := pace.wait_s(weight, priority, now_s)) > 0:
            assert wait_s <= 60
            now_s += wait_s
        pace._spend(weight, now_s)
        spent.append((now_s, weight))
        used = sum(of for at_s, of in spent if at_s > now_s - 60)
        assert used <= {Priority.REPAIR: 100, Priority.AUDIT: 95, Priority.WARM_UP: 85}[priority] or used == weight


async def test_a_repair_finds_room_where_a_warm_up_waits() -> None:
    pace, made = Pace(weight=10, window_s=0.2), list[str]()

    async def ask(name: str, priority: Priority) -> None:
        with asking_for(priority):
            await pace(5)
        made.append(name)

    async with asyncio.timeout(20):
        await asyncio.gather(
            ask("warm 1", Priority.WARM_UP), ask("warm 2", Priority.WARM_UP), ask("repair", Priority.REPAIR)
        )
    assert made == ["warm 1", "repair", "warm 2"]


def test_what_others_have_used_counts_too() -> None:
    pace = Pace(weight=100, window_s=60)
    pace._spend(40, 0.0)
    pace.heard(30, 1.0)
    assert pace.wait_s(60, Priority.REPAIR, 1.0) == 0, "our own were counted already"
    pace.heard(90, 2.0)
    assert pace.wait_s(20, Priority.REPAIR, 2.0) == 58.0
    assert pace.wait_s(50, Priority.REPAIR, 60.5) == 0
    assert pace.wait_s(51, Priority.REPAIR, 60.5) == 1.5


class Limiter:
    """A limiter of ccxt's, as far as it is looked at."""

    def __init__(self, **config: object) -> None:
        self.config = config


def test_all_clients_of_an_exchange_share_the_limiter_of_the_first() -> None:
    budget, leaky = Budget(lambda: NOW_NS), Limiter(algorithm="leakyBucket")
    assert budget.share(leaky) is leaky
    assert budget.share(Limiter(algorithm="leakyBucket")) is leaky
    budget = Budget(lambda: NOW_NS)
    pace = budget.share(Limiter(algorithm="rollingWindow", maxWeight=2307.0, windowSize=60_000.0))
    assert isinstance(pace, Pace)
    assert budget.share(Limiter(algorithm="rollingWindow", maxWeight=1.0, windowSize=1.0)) is pace
