import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds.budget import AT_ONCE, Budget, Pace, Priority, asking_for
from feeds.market import NS_PER_S
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
    for priority in (Priority.AUDIT, Priority.REPAIR):
        busy.append(asyncio.create_task(requests.ask("spare", priority)))
        await until(lambda: len(requests.order) == len(busy))
    asked = [("warm 1", None), ("audit", Priority.AUDIT), ("warm 2", None), ("repair 1", Priority.REPAIR)]
    tasks = [asyncio.create_task(requests.ask(name, priority)) for name, priority in asked]
    tasks.append(asyncio.create_task(requests.ask("repair 2", Priority.REPAIR)))
    await asyncio.sleep(0)
    for _ in range(len(busy) + len(tasks)):
        requests.release.release()
    await asyncio.gather(*busy, *tasks)
    assert requests.order[len(busy) :] == ["repair 1", "repair 2", "audit", "warm 1", "warm 2"]


@pytest.mark.parametrize("other", [Priority.WARM_UP, Priority.AUDIT])
async def test_a_repair_does_not_wait_until_others_are_done_however_many_there_are(other: Priority) -> None:
    requests = Requests(Budget(lambda: NOW_NS))
    tasks = [asyncio.create_task(requests.ask(f"other {n}", other)) for n in range(20)]
    await asyncio.sleep(0)
    under_way = len(requests.order)
    assert AT_ONCE <= under_way < 20
    tasks.append(asyncio.create_task(requests.ask("repair", Priority.REPAIR)))
    await until(lambda: len(requests.order) == under_way + 1)
    assert requests.order[-1] == "repair"
    for _ in tasks:
        requests.release.release()
    await asyncio.gather(*tasks)


async def test_those_who_wait_out_a_block_hold_no_room_and_go_by_urgency_when_it_ends() -> None:
    requests = Requests(Budget(lambda: NOW_NS))
    requests.budget.block(0.2)
    asked = [(f"warm {n}", None) for n in range(10)] + [(f"audit {n}", Priority.AUDIT) for n in range(10)]
    tasks = [asyncio.create_task(requests.ask(name, priority)) for name, priority in asked]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(requests.ask(f"repair {n}", Priority.REPAIR)) for n in range(10)]
    await asyncio.sleep(0)
    requests.budget.block(0.3)
    assert requests.order == []
    for _ in tasks:
        requests.release.release()
    async with asyncio.timeout(30):
        await asyncio.gather(*tasks)
    assert [name.split()[0] for name in requests.order] == ["repair"] * 10 + ["audit"] * 10 + ["warm"] * 10


async def test_nobody_asks_before_the_time_that_the_exchange_named_whatever_the_wall_clock_does() -> None:
    loop, walls = asyncio.get_running_loop(), [NOW_NS, NOW_NS + 86_400 * NS_PER_S, NOW_NS - 86_400 * NS_PER_S]
    told = list[tuple[int, int]]()
    budget = Budget(lambda: walls[0], blocked=lambda *wait: told.append(wait))
    requests, began_s = Requests(budget), loop.time()
    budget.block(0.2)
    budget.block(0.01)
    assert told == [(NOW_NS, NOW_NS + NS_PER_S // 5)]
    task = asyncio.create_task(requests.ask("a", None))
    while not requests.order:
        walls.append(walls.pop(0))
        await asyncio.sleep(0.01)
    assert loop.time() - began_s >= 0.2
    requests.release.release()
    await task


NOON_NS, HOUR_NS = NOW_NS, 3600 * NS_PER_S


@pytest.mark.parametrize(
    ("restarted_ns", "left_s"),
    [
        (NOON_NS, 7200),
        (NOON_NS + HOUR_NS, 3600),
        (NOON_NS + 2 * HOUR_NS, 0),
        (NOON_NS + 1000 * HOUR_NS, 0),
        (NOON_NS - 1000 * HOUR_NS, 7200),
    ],
)
async def test_a_start_goes_on_with_what_is_left_of_a_wait_and_the_next_with_what_is_left_then(
    restarted_ns: int, left_s: int
) -> None:
    told, wall_ns = list[tuple[int, int]](), NOON_NS

    def life() -> Budget:
        return Budget(lambda: wall_ns, blocked=lambda *wait: told.append(wait))

    life().block(7200.0)
    wall_ns = restarted_ns
    second = life()
    second.remember(*told[-1])
    assert second.blocked_for_s == pytest.approx(left_s, abs=5)
    wall_ns += HOUR_NS
    third = life()
    third.remember(*told[-1])
    assert third.blocked_for_s == pytest.approx(max(0, left_s - 3600), abs=5), "also where the clock had been set back"


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
        used = sum(of for at_s, of in spent if at_s + 60 > now_s)
        assert used <= {Priority.REPAIR: 100, Priority.AUDIT: 95, Priority.WARM_UP: 85}[priority] or used == weight


async def test_one_that_waits_for_its_pace_waits_out_a_block_that_comes_meanwhile() -> None:
    budget = Budget(lambda: NOW_NS)
    pace = budget.share(Limiter(algorithm="rollingWindow", maxWeight=10.0, windowSize=50.0))
    loop = asyncio.get_running_loop()
    await pace(10)
    task = asyncio.create_task(pace(10))
    await asyncio.sleep(0)
    began_s = loop.time()
    budget.block(0.2)
    async with asyncio.timeout(30):
        await task
    assert loop.time() - began_s >= 0.2


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
