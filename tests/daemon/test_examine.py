"""A feed examined over each emulated exchange: what is sound is called so, and each fault by its name."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from config.schema import Feed
from daemon import clock, examine, listen
from daemon.doctor import Finding
from daemon.examine import FeedExamination
from feeds.emulator import Emulator, Tape
from feeds.emulator.synthetic import synthetic_tape
from feeds.emulator.tape import K
from feeds.errors import RequestRefused
from feeds.exchanges import CODECS
from feeds.market import NS_PER_MS, NS_PER_S

NATIVES = {
    "binance": "{}USDT", "bybit": "{}USDT", "bingx": "{}-USDT", "bitget": "{}USDT", "bitmex": "{}USDT",
}  # fmt: skip
PAST_MS = 9 * 3_600_000
"""Holds a settlement of funding."""
HOUR_NS = 3600 * NS_PER_S
WAIT_S = 90
Findings = dict[tuple[str, str], Finding]
"""By what they are about, without the exchange, and their names."""


class Venue:
    """An emulated exchange that begins at our time, and the feed of it that is examined."""

    def __init__(self, exchange: str, coins: tuple[str, ...], *, speed: float = 240, ahead_ns: int = 0) -> None:
        self.exchange, now_ns = exchange, clock.now_ns() + ahead_ns
        begin_ms = (now_ns // NS_PER_MS - PAST_MS) // 60_000 * 60_000
        name = NATIVES.get(exchange, "{}USDT").format
        self.tapes = {name(coin): synthetic_tape(name(coin), seed=2, begin_ms=begin_ms) for coin in coins}
        dialect = exchange if exchange in CODECS else "binance"
        self.emulator = Emulator(self.tapes, exchange=dialect, start_ns=now_ns, speed=speed)
        self.port = 0

    def feed(self, *symbols: str, **more: Any) -> Feed:
        url = f"127.0.0.1:{self.port}"
        return Feed(exchange=self.exchange, symbols=symbols, ws_url=f"ws://{url}", rest_url=f"http://{url}", **more)

    async def examined(self, *symbols: str, listen_s: float | None = 0, **more: Any) -> Findings:
        found: list[Finding] = []
        async with asyncio.timeout(WAIT_S):
            await FeedExamination(self.feed(*symbols, **more), found.append).run(listen_s=listen_s)
        return {(one.about.removeprefix(self.exchange).lstrip(), one.name): one for one in found}


@asynccontextmanager
async def open_venue(venue: Venue) -> AsyncIterator[Venue]:
    venue.port = await venue.emulator.start()
    try:
        yield venue
    finally:
        await venue.emulator.stop()


def falsify(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the exchange's own candles say a higher high and more volume than its trades."""
    true: Callable[..., list[list[int]]] = tape.candles

    def false(*args: Any, **kwargs: Any) -> list[list[int]]:
        bars = [list(bar) for bar in true(*args, **kwargs)]
        for bar in bars:
            bar[K.HIGH] += 1000  # above the close before, too, from which some exchanges begin
            bar[K.VOLUME] += 1
        return bars

    monkeypatch.setattr(tape, "candles", false)


async def everywhere(check: Callable[[str], Coroutine[Any, Any, None]], *more: str, but: str = "") -> None:
    """Check all exchanges at once: most of the time is spent waiting."""
    async with asyncio.TaskGroup() as group:
        for exchange in (*CODECS, *more):
            if exchange != but:
                group.create_task(check(exchange), name=exchange)


BTC, ETH, SOL = "BTC/USDT:USDT", "ETH/USDT:USDT", "SOL/USDT:USDT"


async def test_a_sound_feed_is_called_so_and_a_wrong_kline_by_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    await everywhere(partial(check_candles, monkeypatch), "ccxt:binanceusdm")


async def check_candles(monkeypatch: pytest.MonkeyPatch, exchange: str) -> None:
    async with open_venue(Venue(exchange, ("BTC", "ETH"), speed=120)) as venue:
        falsify(list(venue.tapes.values())[1], monkeypatch)
        found = await venue.examined(BTC, ETH, listen_s=None)
    assert [key for key, one in found.items() if one.ok is False] == [(ETH, "candles")]
    assert {name for about, name in found if about == BTC} == {"market", "funding", "first data", "candles"}
    assert {one.verdict for (about, _), one in found.items() if about == BTC} == {"ok"}
    assert re.fullmatch(
        r"\d+ 1m candles? compared with (its stream and )?REST, equal to tick and lot", found[BTC, "candles"].detail
    )
    wrong = found[ETH, "candles"].detail
    assert re.search(r"Z high [\d.]+ here, [\d.]+, volume [\d.]+ here, [\d.]+ by (REST|its stream)", wrong)
    assert not re.search(r"(open|low|close) ", wrong)
    assert re.search(r"trade after \d+ ms", found[BTC, "first data"].detail)
    assert "decimals" in found[BTC, "market"].detail
    streams = [one.detail for (_, name), one in found.items() if name == "streams"]
    planned = "through ccxt" if exchange not in CODECS else "6 planned, "
    assert all(text.startswith(planned) and " in " in text for text in streams)


async def test_a_halted_market_is_no_fault_and_an_unknown_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "SILENCE_S", 0.4)
    await everywhere(check_halted)


async def check_halted(exchange: str) -> None:
    async with open_venue(Venue(exchange, ("BTC", "SOL"), speed=60)) as venue:
        venue.emulator.venue.halt(list(venue.tapes)[1])
        found = await venue.examined("BTX/USDT:USDT", BTC, SOL, calibrate_on=["XYZ/USDT:USDT"])
    assert {key for key in found if key[1] in ("market", "calibrated on") and found[key].ok is False} == {
        ("BTX/USDT:USDT", "market"),
        ("XYZ/USDT:USDT", "calibrated on"),
    }
    assert found["BTX/USDT:USDT", "market"].advice == f"did you mean {BTC}?"
    halted, heard = found[SOL, "market"], found[SOL, "first data"]
    assert (halted.verdict, "is halted" in halted.detail) == ("warn", True)
    assert heard.ok is not False
    if "no trade" in heard.detail:  # some exchanges begin with what was last
        assert heard.advice == "right for a market that is halted"


async def test_streams_that_are_acknowledged_and_silent_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "SILENCE_S", 0.3)
    await everywhere(check_mute, but="bitmex")


async def check_mute(exchange: str) -> None:
    async with open_venue(Venue(exchange, ("BTC",))) as venue:
        venue.emulator.mute = True
        found = await venue.examined(BTC, listen_s=None)
    assert found["", "streams"].ok is True
    heard = found[BTC, "first data"]
    assert (heard.ok, "no trade and no" in heard.detail) == (False, True)
    assert "its data is lost on the way" in heard.advice
    assert (BTC, "candles") not in found


async def test_bitmex_confirms_nothing_without_a_first_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "CONFIRM_S", 0.3)
    async with open_venue(Venue("bitmex", ("BTC",))) as venue:
        venue.emulator.mute = True
        found = await venue.examined(BTC)
    assert (found["", "streams"].ok, "no answer in" in found["", "streams"].detail) == (False, True)


async def test_an_exchange_that_bars_us_over_rest() -> None:
    await everywhere(check_barred)


async def check_barred(exchange: str) -> None:
    async with open_venue(Venue(exchange, ("BTC",))) as venue:
        venue.emulator.refuse = 451
        (barred,) = (await venue.examined(BTC)).values()
    assert (barred.name, barred.ok) == ("REST", False)
    assert barred.detail.startswith("the exchange will not serve this address (")
    assert "451" in barred.detail
    assert "proxy" in barred.advice


async def test_an_exchange_that_bars_us_on_the_websocket_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_venue(Venue("binance", ("BTC",))) as venue:
        monkeypatch.setattr(FeedExamination, "_plan", barring(venue.emulator, FeedExamination._plan))
        found = await venue.examined(BTC)
    streams = found["", "streams"]
    assert streams.ok is False
    assert "not confirmed: the exchange will not serve this address (refused: HTTP 451)" in streams.detail
    assert (BTC, "first data") not in found


def barring(emulator: Emulator, plan: Callable[..., Any]) -> Callable[..., Any]:
    """Bar us between the last request and the first connection."""

    def barred(*args: Any) -> Any:
        emulator.refuse = 451
        return plan(*args)

    return barred


async def test_streams_that_nobody_confirms_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "CONFIRM_S", 0.3)
    async with open_venue(Venue("binance", ("BTC",))) as venue:
        venue.emulator.faults.half_open = True
        found = await venue.examined(BTC)
    assert found["", "streams"].ok is False
    assert "not confirmed: no answer in " in found["", "streams"].detail


@pytest.mark.parametrize(("ahead_s", "side"), [(3600, "ahead of"), (-3600, "behind")])
async def test_a_clock_that_is_off_is_a_warning_that_says_what_depends_on_it(ahead_s: int, side: str) -> None:
    async with open_venue(Venue("binance", ("BTC",), ahead_ns=ahead_s * NS_PER_S)) as venue:
        found = await venue.examined(BTC)
    assert found["", "clock"].verdict == "warn"
    assert side in found["", "clock"].detail
    assert 3500 < int(found["", "clock"].detail.split()[0]) / 1000 < 3700
    assert "signals do not depend on it" in found["", "clock"].advice


async def test_a_clock_that_agrees_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "SILENCE_S", 0.1)
    venue = Venue("binance", ("BTC",), speed=1)
    venue.emulator.venue.clock.begin()
    async with open_venue(venue):
        found = await venue.examined(BTC)
    assert found["", "clock"].verdict == "ok"


async def test_candles_longer_than_a_minute_are_judged_by_those_of_one() -> None:
    async with open_venue(Venue("binance", ("BTC",))) as venue:
        found = await venue.examined(BTC, listen_s=None, candles=["5m"])
    assert "1m candle" in found[BTC, "candles"].detail
    assert found[BTC, "candles"].ok is True


async def test_too_short_a_listening_compares_nothing_and_says_for_how_long_to_listen() -> None:
    async with open_venue(Venue("binance", ("BTC",), speed=1)) as venue:
        found = await venue.examined(BTC, listen_s=0.1)
    assert found[BTC, "candles"].verdict == "warn"
    assert found[BTC, "candles"].advice == "listen longer: --listen 150"


async def test_of_many_markets_only_what_is_wrong_is_told_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "MANY", 1)
    async with open_venue(Venue("binance", ("BTC", "ETH", "SOL"))) as venue:
        found = await venue.examined("all", "NO/USDT:USDT")
    assert found["", "market"].detail == "3 more are fine"
    assert found["", "first data"].detail == "3 more are fine"
    assert [key for key, one in found.items() if key[0] and one.ok is False] == [("NO/USDT:USDT", "market")]


async def test_each_connection_is_planned_and_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CODECS["binance"], "capacity", 4)
    async with open_venue(Venue("binance", ("BTC", "ETH"))) as venue:
        found = await venue.examined(BTC, ETH)
        few = await venue.examined(BTC, candles=["1m", "5m"])
    for about in ("connection 1 of 2", "connection 2 of 2"):
        assert found[about, "streams"].detail.startswith("3 planned, 3 of the 4 that a connection may carry")
    assert few["", "streams"].ok is False
    assert few["", "streams"].advice == "configure fewer candle specs for it"


async def test_an_exchange_that_is_no_more_is_said_to_be() -> None:
    with pytest.raises(RequestRefused, match="BitMEX closed"):
        FeedExamination(Feed(exchange="bitmex", symbols=(BTC,)), lambda _: None)


async def test_a_connection_lost_while_it_is_listened_to_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_venue(Venue("binance", ("BTC",))) as venue:
        connected = listen.Listener.connected

        def cut_once(listener: listen.Listener) -> None:
            if listener.confirmed_after_s is None:
                cutting.append(asyncio.ensure_future(venue.emulator.cut()))
            connected(listener)

        cutting: list[asyncio.Future[None]] = []
        monkeypatch.setattr(listen.Listener, "connected", cut_once)
        found: list[Finding] = []
        async with asyncio.timeout(WAIT_S):
            await FeedExamination(venue.feed(BTC), found.append).run(listen_s=None)
        await asyncio.gather(*cutting)
    streams = [one for one in found if one.name == "streams"]
    assert [one.verdict for one in streams] == ["ok", "warn"]
    assert streams[1].detail.startswith("lost 1 time in ")
    assert [one.ok for one in found if one.name == "candles"] == [True]
