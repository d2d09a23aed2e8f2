"""An exchange in memory: the emulator's Binance, its websocket and REST without sockets, and a network that fails."""

import asyncio
import functools
import random
import re
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import msgspec
from ccxt.async_support.binanceusdm import binanceusdm
from ccxt.base import errors

from feeds.emulator.clock import VirtualClock
from feeds.emulator.dialects.base import Refused
from feeds.emulator.dialects.binance import Binance
from feeds.emulator.synthetic import synthetic_tape
from feeds.emulator.tape import Tape
from feeds.emulator.venue import Venue
from feeds.errors import RateLimited, RemoteError
from tests.simulation.loop import VirtualLoop
from tests.simulation.world import START_NS, World

NATIVES = ("BTCUSDT", "ETHUSDT")
SPAN_S = 26 * 60
"""How much of a tape is written down to be sent."""
TAPES = 3
PAST_MS = 10 * 3_600_000
KLINE_TICK_MS = 500
SMALL_MS = 5000
"""The shortest candle of the daemon's."""
LATENCY_S = (0.005, 0.06)
QUEUE_MAX = 4000
"""Frames that may wait for a reader who does not read; beyond, the exchange ends the connection."""
_TIME = re.compile(r'"E":(\d+)')
_TRADED = re.compile(r'"T":(\d+)')


class Shot(NamedTuple):
    """A frame of market data and when it is sent, seconds from the start."""

    at_s: float
    stream: str
    text: str
    may_vanish: bool
    """A trade that another follows within the same small candle: its absence shows before that candle can close."""


@functools.cache
def tapes(number: int) -> dict[str, Tape]:
    begin_ms = (START_NS // 1_000_000 - PAST_MS) // 60_000 * 60_000
    return {native: synthetic_tape(native, seed=1000 + number, begin_ms=begin_ms) for native in NATIVES}


@functools.cache
def programme(number: int) -> list[Shot]:
    """Write down what the emulated exchange sends on each stream, once for all runs on that tape."""
    now_ms = [START_NS // 1_000_000]
    venue = Venue(VirtualClock(START_NS, monotonic_ns=lambda: now_ms[0] * 1_000_000 - START_NS), tapes(number))
    venue.clock.begin()
    shots: list[Shot] = []
    for native in NATIVES:
        for variant, tick_ms in (("aggTrade", 60_000), ("kline_1m", KLINE_TICK_MS), ("markPrice@1s", 1000)):
            shots += _stream(venue, f"{native.lower()}@{variant}", tick_ms, now_ms)
    return sorted(shots, key=lambda shot: shot.at_s)


def _stream(venue: Venue, name: str, tick_ms: int, now_ms: list[int]) -> list[Shot]:
    now_ms[0] = start_ms = START_NS // 1_000_000
    wire = Binance(venue).connect("/market/stream", {"streams": name}, 0.0)
    sent: list[tuple[int, str]] = []
    for at_ms in range(start_ms + tick_ms, start_ms + SPAN_S * 1000 + 1, tick_ms):
        now_ms[0] = at_ms
        for text in wire.due(at_ms):
            assert isinstance(text, str)
            event = _TIME.search(text)
            assert event
            sent.append((int(event[1]) if name.endswith("aggTrade") else at_ms, text))
    times = [
        int(_TRADED.findall(text)[0]) // SMALL_MS if name.endswith("aggTrade") else n
        for n, (_, text) in enumerate(sent)
    ]
    followed = [early == late for early, late in pairwise(times)] + [False]
    return [Shot((at_ms - start_ms) / 1000, name, text, may) for (at_ms, text), may in zip(sent, followed, strict=True)]


class Exchange:
    """The exchange's side of one run."""

    def __init__(self, world: World, tape: int) -> None:
        self.world = world
        clock = VirtualClock(START_NS, monotonic_ns=lambda: round(world.now_s * 1e9))
        clock.begin()
        self.venue = Venue(clock, tapes(tape))
        self.dialect = Binance(self.venue)
        self.programme = programme(tape)
        self.times = [shot.at_s for shot in self.programme]
        self.chance = world.chance("exchange")
        self.sessions: list[Session] = []

    def break_all(self, reason: str) -> int:
        """End every connection; return how many there were."""
        doomed = [session for session in self.sessions if session.open]
        for session in doomed:
            session.end(reason)
        return len(doomed)

    # ---- websocket: stands in for feeds.transport.connect

    @asynccontextmanager
    async def connect(
        self, url: str, *, proxy: str | None = None, ping: bool = True, open_timeout_s: float = 10.0, **_: Any
    ) -> AsyncIterator["Session"]:
        world = self.world
        await asyncio.sleep(self.chance.uniform(*LATENCY_S) * 3)
        if refusal := self._refusal():
            raise refusal
        if world.on("silence"):
            await asyncio.sleep(open_timeout_s)
            raise RemoteError("cannot connect: timed out during opening handshake")
        session = Session(self, url, ping=ping)
        self.sessions.append(session)
        try:
            yield session
        finally:
            session.end("closed by us")

    def _refusal(self) -> RemoteError | None:
        world = self.world
        if world.on("dns"):
            return RemoteError("cannot connect: [Errno -2] Name or service not known")
        if world.on("tls"):
            return RemoteError("cannot connect: [SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired")
        for kind, status in (("ws_429", 429), ("ws_418", 418)):
            if world.on(kind):
                return RateLimited(f"cannot connect: HTTP {status}", retry_after_s=float(self.chance.randint(1, 20)))
        return None


class Session:
    """One connection: both ends, and the network between."""

    def __init__(self, exchange: Exchange, url: str, *, ping: bool) -> None:
        self.exchange, self.world = exchange, exchange.world
        parts = urlsplit(url)
        self._wire = exchange.dialect.connect(parts.path, dict(parse_qsl(parts.query)), self.world.now_s)
        self.open = True
        self.dead = False
        """Whether nothing passes any more, though nobody said so."""
        self._loop = asyncio.get_running_loop()
        self._chance = self.world.chance(f"session {len(exchange.sessions)}")
        self._latency_s = self._chance.uniform(*LATENCY_S)
        self._names: frozenset[str] = frozenset()
        self._inbox: deque[bytes] = deque()
        self._reason = ""
        self._reader: asyncio.Future[None] | None = None
        self._arrives_s = 0.0
        self._held: Shot | None = None
        self._at = bisect_right(exchange.times, self.world.now_s)
        if ping:
            self.world.timeline.after(20.0, self._ping)

    # ---- our end: what feeds.transport.Connection offers

    async def recv(self) -> bytes:
        while not self._inbox:
            if not self.open:
                raise RemoteError(f"connection ended: {self._reason}")
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if self.world.in_force("exception") and self.world.on("exception"):
            self.world.planted.add("exception")
            del self.world.active["exception"]
            raise ZeroDivisionError("planted")
        return self._inbox.popleft()

    async def send(self, text: str) -> None:
        if not self.open:
            raise RemoteError(f"cannot send: {self._reason}")
        if not self._lost:
            self.world.timeline.after(self._latency_s, lambda: self._asked(text))

    def end(self, reason: str) -> None:
        """End it; what has arrived can still be read."""
        if self.open:
            self.open, self._reason = False, reason
            self._wake()

    @property
    def _lost(self) -> bool:
        return self.dead or not self.open

    def _wake(self) -> None:
        alive = isinstance(self._loop, VirtualLoop) and self._loop.alive and not self._loop.is_closed()
        if alive and self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _ping(self) -> None:
        """Let the websocket library find out that its pings are not answered."""
        if self.dead:
            self.world.timeline.after(20.0, lambda: self.end("keepalive ping timeout"))
        elif self.open:
            self.world.timeline.after(20.0, self._ping)

    # ---- the exchange's end

    def _asked(self, text: str) -> None:
        if self._lost:
            return
        for answer in self._wire.answer(text, self.world.now_s):
            assert isinstance(answer, str)
            self._carry(answer.encode())
        listed = self._wire.answer('{"method":"LIST_SUBSCRIPTIONS","id":0}', self.world.now_s)[0]
        fresh = frozenset(msgspec.json.decode(str(listed))["result"])
        if fresh != self._names:
            self._names = fresh
            if self.world.on("stale"):
                self._repeat(200)
            self._at = bisect_right(self.exchange.times, self.world.now_s)
            self._schedule()

    def _repeat(self, frames: int) -> None:
        """Send old news again, as some caches do to who has just subscribed: trades up to now, others from before."""
        at = bisect_right(self.exchange.times, self.world.now_s)
        for shot in self.exchange.programme[max(0, at - frames) : at]:
            is_old = shot.at_s < self.world.now_s - 5.0
            if shot.stream in self._names and (is_old or shot.stream.endswith("aggTrade")):
                self._carry(shot.text.encode())

    def _schedule(self) -> None:
        number = self._at
        if not self._lost and number < len(self.exchange.times):
            names = self._names
            self.world.timeline.at(
                self.exchange.times[number], lambda: self._play(number) if self._names is names else None
            )

    def _play(self, number: int) -> None:
        if self._lost:
            return
        if self.world.on("silence"):
            self.dead = True
            return
        end = bisect_right(self.exchange.times, self.world.now_s)
        for shot in self.exchange.programme[number:end]:
            if shot.stream in self._names:
                for frame in self._disturbed(shot):
                    self._carry(frame)
        self._at = end
        self._schedule()

    def _disturbed(self, shot: Shot) -> list[bytes]:
        """Return what becomes of a frame."""
        chance, world = self._chance, self.world
        if shot.may_vanish and world.in_force("gap") and chance.random() < 0.3 and world.on("gap"):
            return []
        shots = [shot]
        if self._held is not None:
            shots, self._held = [shot, self._held], None
        elif world.in_force("reorder") and chance.random() < 0.2 and world.on("reorder"):
            self._held = shot
            return []
        frames = [one.text.encode() for one in shots]
        if world.in_force("duplicate") and chance.random() < 0.3 and world.on("duplicate"):
            frames += frames
        if world.in_force("malformed") and chance.random() < 0.1 and world.on("malformed"):
            frames.insert(0, _damaged(frames[0], chance))
        if world.in_force("huge") and chance.random() < 0.02 and world.on("huge"):
            frames.insert(0, b'{"stream":"' + b"x" * (2 << 20))
        return frames

    def _carry(self, frame: bytes) -> None:
        """Bring a frame to us, in order, after the way it has to go."""
        delay_s = self._latency_s
        if self.world.in_force("drip") and self.world.on("drip"):
            delay_s += self._chance.uniform(0.05, 0.4)
            self._arrives_s = max(self._arrives_s, self.world.now_s) + delay_s
        else:
            self._arrives_s = max(self._arrives_s, self.world.now_s + delay_s)
        self.world.timeline.at(self._arrives_s, lambda: self._arrive(frame))

    def _arrive(self, frame: bytes) -> None:
        if self._lost:
            return
        self._inbox.append(frame)
        if len(self._inbox) > QUEUE_MAX:
            self.end("received 1008 (policy violation) slow consumer")
        self._wake()


def _damaged(frame: bytes, chance: random.Random) -> bytes:
    how = chance.randrange(4)
    if how == 0:
        return frame[: chance.randrange(len(frame))]
    if how == 1:
        return bytes(chance.randrange(256) for _ in range(chance.randrange(1, 200)))
    if how == 2:
        return frame.replace(b'"p":"', b'"p":"-', 1).replace(b'"o":"', b'"o":null,"x":"', 1)
    at = chance.randrange(len(frame))
    return b"\xff\x00" + frame[:at] + b"\xfe" + frame[at:]


# ---- REST: stands in for ccxt's client

_PATHS = {
    "fapiPublicGetTime": "time",
    "fapiPublicGetKlines": "klines",
    "fapiPublicGetMarkPriceKlines": "markPriceKlines",
    "fapiPublicGetAggTrades": "aggTrades",
    "fapiPublicGetFundingRate": "fundingRate",
}


_CACHED = ("klines", "fundingRate")
"""What may be answered as it was a little while ago. The newest page of trades may not: see docs/simulation.md."""
_WEIGHTS = {"klines": 5, "aggTrades": 20}
_LIMIT = {"algorithm": "rollingWindow", "maxWeight": 2000.0, "windowSize": 60_000.0}
_CCXT = binanceusdm({})
"""Reads what the exchange says of its contracts, as ccxt does."""


class Rest:
    """What `BinanceHistory` uses of ccxt's client, answered by the exchange of the run."""

    exchange: Exchange

    def __init__(self, _options: Mapping[str, Any]) -> None:
        self.last_response_headers: dict[str, str] = {}
        self.throttler: Any = SimpleNamespace(config=_LIMIT)  # what takes its place is the daemon's own
        self.on_rest_response: Any = None

    def __getattr__(self, name: str) -> Any:
        if name == "fetch_markets":
            return self._markets
        return functools.partial(self._get, _PATHS[name])

    async def close(self) -> None:
        pass

    async def _markets(self, _ask: Mapping[str, Any]) -> Any:
        info = await self._get("exchangeInfo", {})

        async def said(_: object) -> Any:
            return info

        _CCXT.fapiPublicGetExchangeInfo = said
        return await _CCXT.fetch_markets({})

    async def _get(self, path: str, ask: Mapping[str, Any]) -> Any:
        exchange, world = self.exchange, self.exchange.world
        chance = exchange.chance
        await self.throttler(_WEIGHTS.get(path, 1))
        there_s = chance.uniform(*LATENCY_S)
        await asyncio.sleep(there_s)
        await self._hindered(path)
        if world.in_force("rest_lag") and path in _CACHED and world.on("rest_lag"):
            answer = self._as_of(path, ask, world.now_s - chance.uniform(0.5, 4.0))
        else:
            answer = self._answer(path, ask)
        if world.in_force("rest_garbage") and chance.random() < 0.5 and world.on("rest_garbage"):
            answer = chance.choice(["<html>502</html>", [["a"]], [{"e": 1}], 17])
        await asyncio.sleep(there_s)
        return answer

    async def _hindered(self, path: str) -> None:
        world, chance = self.exchange.world, self.exchange.chance
        if world.on("dns"):
            raise errors.NetworkError(f"binanceusdm GET {path} Cannot connect to host [Name or service not known]")
        if world.on("tls"):
            raise errors.ExchangeNotAvailable(f"binanceusdm GET {path} certificate verify failed")
        if world.on("silence") or (world.in_force("rest_slow") and chance.random() < 0.4 and world.on("rest_slow")):
            await asyncio.sleep(10.0)
            raise errors.RequestTimeout(f"binanceusdm GET {path}")
        if world.on("rest_503"):
            raise errors.ExchangeNotAvailable(f"binanceusdm GET {path} 503 Service Unavailable")
        for kind, status in (("rest_429", 429), ("rest_418", 418)):
            if world.on(kind):
                self.last_response_headers = (
                    {"Retry-After": str(chance.randint(1, 20))} if chance.random() < 0.7 else {}
                )
                raise errors.DDoSProtection(f"binanceusdm {status} Too Many Requests {path}")

    def _as_of(self, path: str, ask: Mapping[str, Any], at_s: float) -> Any:
        """Answer as a cache does that is a little behind."""
        clock = VirtualClock(START_NS + round(at_s * 1e9))
        return self._ask(Binance(Venue(clock, self.exchange.venue.tapes)), path, ask)

    def _answer(self, path: str, ask: Mapping[str, Any]) -> Any:
        return self._ask(self.exchange.dialect, path, ask)

    def _ask(self, dialect: Binance, path: str, ask: Mapping[str, Any]) -> Any:
        try:
            return dialect.rest(path, {key: str(value) for key, value in ask.items()})
        except Refused as refused:
            raise errors.ExchangeError(f"binanceusdm {msgspec.json.encode(refused.body).decode()}") from None
