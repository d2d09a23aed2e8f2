"""What can go wrong with the emulated exchange, whatever its dialect."""

import asyncio
import math
from itertools import pairwise

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from feeds.emulator import Emulator
from feeds.emulator.clock import VirtualClock
from feeds.emulator.dialects.base import Close, Ping
from feeds.emulator.dialects.binance import PING_EVERY_S, PONG_WITHIN_S, Binance
from feeds.emulator.faults import Disorder, Faults
from feeds.emulator.venue import Venue
from feeds.emulator.websocket import TICK_S
from tests.feeds.emulators import START_MS, HandClock, ask, drained, get, invented, joined, running

TRADES = "/market/ws/btcusdt@aggTrade"
SHORTLY_S = 0.2
"""Long enough for a frame to arrive that should not have been sent."""


async def ids(socket: ClientConnection, count: int) -> list[int]:
    return [msgspec.json.decode(await socket.recv())["a"] for _ in range(count)]


async def sent(emulator: Emulator, frames: int) -> None:
    while emulator.venue.frames < frames:  # noqa: ASYNC110 - the emulator has no event for it
        await asyncio.sleep(TICK_S)


async def until_silent(socket: ClientConnection) -> list[str]:
    arrived = []
    while True:
        try:
            arrived.append(str(await asyncio.wait_for(socket.recv(), SHORTLY_S)))
        except TimeoutError:
            return arrived


async def ended(socket: ClientConnection) -> Close:
    with pytest.raises(ConnectionClosed) as closed:
        await drained(socket)
    assert closed.value.rcvd is not None
    return Close(closed.value.rcvd.code, closed.value.rcvd.reason)


# ---- disorder


@given(
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 99),
    pieces=st.lists(st.integers(0, 7), max_size=20),
)
def test_disorder_is_a_function_of_seed_and_frames_and_loses_none(
    shares: tuple[float, float], seed: int, pieces: list[int]
) -> None:
    faults = Faults(seed, duplicate=shares[0], reorder=shares[1])
    frames = list(range(sum(pieces)))
    whole = Disorder[int](faults, 1).apply(frames)
    disorder, at, out = Disorder[int](faults, 1), 0, list[int]()
    for piece in pieces:
        out += disorder.apply(frames[at : at + piece])
        at += piece
    assert out == whole
    once = list(dict.fromkeys(out))
    assert all(abs(place - frame) <= 1 for place, frame in enumerate(once))
    assert set(frames) - set(once) <= set(frames[-1:])  # the last may still wait for its next


def test_disorder_is_as_frequent_as_asked_and_differs_between_connections() -> None:
    faults = Faults(duplicate=0.2, reorder=0.1)
    one, other = (Disorder[int](faults, number).apply(list(range(10_000))) for number in (1, 2))
    assert one != other
    assert sum(a == b for a, b in pairwise(one)) == pytest.approx(2000, rel=0.1)
    once = list(dict.fromkeys(one))
    # a frame that is not held is the next chance to hold: 0.1 / 1.1 of all are
    assert sum(a > b for a, b in pairwise(once)) == pytest.approx(910, rel=0.1)
    assert Disorder[int](Faults(), 1).apply([1, 2, 3]) == [1, 2, 3]


async def test_a_connection_carries_the_disorder() -> None:
    hand = HandClock()
    async with running(hand) as (emulator, port), joined(port, TRADES) as socket:
        await ask(socket, "LIST_SUBSCRIPTIONS")
        emulator.faults.duplicate = emulator.faults.reorder = 0.3
        hand.advance(300)
        seen = await ids(socket, 60)
        assert any(a == b for a, b in pairwise(seen))
        once = list(dict.fromkeys(seen))
        assert once != sorted(once)
        assert len(set(range(min(once), max(once) + 1)) - set(once)) <= 1


# ---- silence


async def test_a_stall_delays_and_loses_nothing() -> None:
    hand = HandClock()
    async with running(hand) as (emulator, port), joined(port, TRADES) as socket:
        await ask(socket, "LIST_SUBSCRIPTIONS")
        hand.advance(30)
        emulator.stall(math.inf)
        last = max((msgspec.json.decode(text)["a"] for text in await until_silent(socket)), default=None)
        queued = emulator.venue.frames
        hand.advance(120)
        await sent(emulator, queued + 20)
        await socket.send('{"method":"LIST_SUBSCRIPTIONS","id":7}')
        assert await until_silent(socket) == []
        emulator.stall(0)
        seen = await ids(socket, 20)
        assert seen == list(range(seen[0], seen[0] + 20))
        assert last is None or seen[0] == last + 1


async def test_half_open_connections_are_accepted_and_say_nothing() -> None:
    hand = HandClock()
    async with running(hand) as (emulator, port), joined(port, TRADES) as old:
        await ask(old, "LIST_SUBSCRIPTIONS")
        emulator.faults.half_open = True
        async with joined(port, TRADES) as young:
            hand.advance(60)
            await young.send('{"method":"LIST_SUBSCRIPTIONS","id":7}')
            pong = await old.ping()
            while emulator.venue.lost < 10:  # noqa: ASYNC110 - the emulator has no event for what it did not send
                await asyncio.sleep(TICK_S)
            assert await until_silent(young) == []
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pong, SHORTLY_S)
            await emulator.expire()
            emulator.faults.half_open = False
            hand.advance(60)
            await ids(young, 5)
            await (await young.ping())


# ---- ends


async def test_connections_expire_with_a_farewell() -> None:
    async with running(HandClock()) as (emulator, port), joined(port, TRADES) as socket:
        await ask(socket, "LIST_SUBSCRIPTIONS")
        await emulator.expire(older_s=3600)
        await ask(socket, "LIST_SUBSCRIPTIONS", request_id=2)
        await emulator.expire()
        assert await ended(socket) == Binance.farewell


async def test_a_lifetime_ends_connections_by_itself() -> None:
    async with running(HandClock()) as (emulator, port):
        emulator.faults.lifetime_s = 0.1
        async with joined(port, TRADES) as socket:
            assert await ended(socket) == Binance.farewell


def test_binance_pings_and_ends_a_connection_that_does_not_answer() -> None:
    venue = Venue(VirtualClock(START_MS * 1_000_000), {"BTCUSDT": invented()})
    wire = Binance(venue).connect(TRADES, {}, 1000.0)
    said = [(s, frame) for s in range(1000, 1700) for frame in wire.idle(float(s))]
    pings = [s for s, frame in said if frame == Ping()]
    assert pings == [1000 + PING_EVERY_S * n for n in (1, 2, 3)]
    assert said[3][0] == 1000 + PONG_WITHIN_S + 1
    assert isinstance(said[3][1], Close)
    wire.pong(1700.0)
    assert wire.idle(1800.0) == [Ping()]


async def test_keep_alive_runs_as_fast_as_told_and_pongs_count() -> None:
    async with (
        running(HandClock(), keepalive_speed=PING_EVERY_S / 0.05) as (_, port),
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{port}{TRADES}", autoping=False) as socket,
    ):
        for _ in range(6):  # longer than the deadline
            assert (await socket.receive()).type is aiohttp.WSMsgType.PING
            await socket.pong()
        while (message := await socket.receive()).type is aiohttp.WSMsgType.PING:
            pass
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1008)


# ---- refusals


@pytest.mark.parametrize(("refuse", "status"), [(True, 503), (403, 403), (451, 451)])
async def test_refusals_have_the_status_asked_for(refuse: bool | int, status: int) -> None:
    async with running(HandClock()) as (emulator, port):
        emulator.refuse = refuse
        assert (await get(port, "time"))[0] == status
        with pytest.raises(InvalidStatus, match=str(status)):
            await joined(port, TRADES)


@pytest.mark.parametrize(("banned", "status"), [(False, 429), (True, 418)])
async def test_a_rate_limit_refuses_so_many_requests(banned: bool, status: int) -> None:
    async with running(HandClock()) as (emulator, port), aiohttp.ClientSession() as session:
        emulator.faults.limit(2, retry_after_s=7, banned=banned)
        replies = []
        for _ in range(3):
            async with session.get(f"http://127.0.0.1:{port}/fapi/v1/time") as reply:
                replies.append((reply.status, reply.headers.get("Retry-After")))
        assert replies == [(status, "7"), (status, "7"), (200, None)]


async def test_an_unknown_exchange_is_no_emulator() -> None:
    with pytest.raises(KeyError, match="nowhere"):
        Emulator({"BTCUSDT": invented()}, exchange="nowhere", start_ns=0)
