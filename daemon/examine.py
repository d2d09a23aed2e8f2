"""Examine the exchange of each feed of a configuration: REST, clock, markets, streams, and the candles made of them.

The daemon's own parts are put to work for a while; here is only asked, timed and said in words.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from config.schema import Config, Feed, Mqtt
from daemon import clock, doctor, topics, universe
from daemon.diagnosis import causes, words
from daemon.doctor import Finding
from daemon.listen import Hearing, Listener, rows, settled
from daemon.mqtt import Credentials
from daemon.universe import NoSuchMarket
from feeds.budget import Budget
from feeds.errors import FeedError
from feeds.exchanges import CODECS
from feeds.history import History, open_history
from feeds.kinds import Kind, kind_of
from feeds.market import NS_PER_DAY, NS_PER_MS, NS_PER_S, Candle, CandleSpec, Market

CONFIRM_S = 15.0
"""How long connecting and the answer to the last request may take together."""
CLOCK_WARN_NS = NS_PER_S
CLOCK_LOOKS = 3
"""The quickest answer says most of the clock behind it."""
OLD_S = 5.0
"""A mark price older than this, by the exchange's clock, is late."""
FUNDING_BACK_NS = 2 * NS_PER_DAY
MANY = 20
"""With more markets than this what is fine is counted, and only the rest said of each."""
_MINUTE = CandleSpec.parse("1m")


async def examine(
    config: Config,
    credentials: Credentials,
    report: Callable[[Finding], None],
    *,
    listen_s: float | None = None,
    progress: Callable[[str, str], None] = lambda *_: None,
) -> None:
    """Examine all that a configuration names, at once; `report` is told each finding when it is made.

    `listen_s`: how long candles are made of each feed's trades; None: until each market has closed a whole one; 0: not.

    Raises:
        RequestRefused: nothing can listen to an exchange, or it is no more and its feed names none in its place.

    """
    feeds = [FeedExamination(feed, report, progress) for feed in config.feeds]
    async with asyncio.TaskGroup() as group:
        group.create_task(_broker(config.mqtt, credentials, report), name="examine broker")
        for feed in feeds:
            group.create_task(feed.run(listen_s=listen_s), name="examine feed")


async def _broker(mqtt: Mqtt, credentials: Credentials, report: Callable[[Finding], None]) -> None:
    report(await doctor.examine_broker(mqtt.url, mqtt.embedded_port, credentials))


class FeedExamination:
    """One feed, from the first request to the last candle compared."""

    def __init__(
        self, feed: Feed, report: Callable[[Finding], None], progress: Callable[[str, str], None] = lambda *_: None
    ) -> None:
        """Set up; `report` is told each finding when it is made, `progress` who is listened to and how far that is.

        Raises:
            RequestRefused: nothing can listen to this exchange, or it is no more and the feed names none in its place.

        """
        self._feed, self._report, self._progress = feed, report, progress
        self._specs = [CandleSpec.parse(text) for text in feed.candles]
        self._ahead_ns = 0
        self._fine: Counter[str] | None = None
        """With many markets: how often what was fine."""
        proxy = feed.proxy.get_secret_value() if feed.proxy else None
        self._kind: Kind = kind_of(feed.exchange, ws_url=feed.ws_url, rest_url=feed.rest_url, proxy=proxy)
        self._history: History = open_history(feed.exchange, feed.rest_url, Budget(clock.now_ns), proxy)
        comparable = [spec for spec in (*self._specs, _MINUTE) if self._kind.has_kline(spec)]
        self._audited = min(comparable, key=lambda spec: spec.interval_ns, default=_MINUTE)

    def _tell(self, name: str, ok: bool | None, detail: str, advice: str = "", *, about: str = "") -> None:
        if ok and about and self._fine is not None:
            self._fine[name] += 1
        else:
            self._report(Finding(name, ok, detail, advice, f"{self._feed.exchange} {about}".rstrip()))

    def _fault(self, name: str, error: FeedError, *, about: str = "") -> None:
        self._tell(name, False, *words(str(error), hints=causes(error)), about=about)

    async def run(self, *, listen_s: float | None) -> None:
        """Examine it all, as far as one thing does not stand in the way of the next.

        `listen_s`: how long candles are made of its trades; None: until each market has closed a whole one; 0: not.
        """
        try:
            await self._clock()
            markets = await self._contracts()
        except FeedError as error:
            self._fault("REST", error)
        else:
            self._choose(markets, self._feed.calibrate_on, "calibrated on")
            chosen = self._choose(markets, self._feed.symbols, "market")
            self._fine = Counter() if len(chosen) > MANY else None
            for market in chosen:
                self._describe(market)
            await self._each(chosen, self._funding)
            if chosen:
                await self._listen(chosen, listen_s)
            for name, count in (self._fine or Counter()).items():
                self._tell(name, True, f"{count} more are fine")
        finally:
            await self._history.aclose()

    async def _each(self, markets: Sequence[Market], ask: Callable[[Market], Coroutine[Any, Any, None]]) -> None:
        """Ask something about each market, a few at once as the budget has it."""
        async with asyncio.TaskGroup() as group:
            for market in markets:
                group.create_task(ask(market), name=f"examine {market.symbol}")

    # ---- REST

    async def _clock(self) -> None:
        began_s = clock.monotonic_s()
        await self._history.time_ns()
        self._tell("REST", True, f"answers, the first time in {_ms(clock.monotonic_s() - began_s)}")
        looks = [await self._look() for _ in range(CLOCK_LOOKS)]
        trip_s, self._ahead_ns = min(looks)
        side = "ahead of" if self._ahead_ns > 0 else "behind"
        said = f"{abs(self._ahead_ns) / NS_PER_MS:.0f} ms {side} ours (there and back in {_ms(trip_s)})"
        if abs(self._ahead_ns) <= CLOCK_WARN_NS:
            self._tell("clock", True, said)
        else:
            advice = "signals do not depend on it, but TLS and the figures of latency do: have NTP set this machine's"
            self._tell("clock", None, said, advice)

    async def _look(self) -> tuple[float, int]:
        """Return how long a look at the exchange's clock takes, s, and how far that is ahead of ours, ns."""
        began_s, began_ns = clock.monotonic_s(), clock.now_ns()
        their_ns = await self._history.time_ns()
        return clock.monotonic_s() - began_s, their_ns - (began_ns + clock.now_ns()) // 2

    async def _contracts(self) -> dict[str, Market]:
        began_s = clock.monotonic_s()
        markets = await self._history.markets()
        trading = sum(market.trading for market in markets.values())
        said = f"{len(markets)} listed, {trading} trade (told in {_ms(clock.monotonic_s() - began_s)})"
        self._tell("contracts", trading > 0, said, "" if trading else "the exchange may be under maintenance")
        return markets

    def _choose(self, markets: dict[str, Market], wanted: Sequence[str], name: str) -> list[Market]:
        """Return the markets that exist, each once; say which do not."""
        chosen: dict[str, Market] = {}
        for symbol in wanted:
            try:
                chosen |= {market.symbol: market for market in universe.choose(markets, [symbol])}
            except NoSuchMarket as error:
                advice = f"did you mean {error.nearest}?" if error.nearest else "look at the exchange's own list"
                self._tell(name, False, "the exchange lists no such contract", advice, about=symbol)
        return list(chosen.values())

    def _describe(self, market: Market) -> None:
        since = topics.rfc3339(market.listed_at_ns)[:10] if market.listed_at_ns else "a day it does not say"
        parts = (
            f"{market.native} {'trades' if market.trading else 'is halted'}, listed since {since}",
            f"tick within {market.price_decimals} decimals, lot within {market.size_decimals}",
            f"volume: {market.volume_unit}",
            f"leverage up to {market.max_leverage:g}" if market.max_leverage else "leverage not said",
        )
        advice = "" if market.trading else "it is waited for; until it trades there are no signals"
        self._tell("market", market.trading or None, "; ".join(parts), advice, about=market.symbol)

    async def _funding(self, market: Market) -> None:
        start_ns = clock.now_ns() + self._ahead_ns - FUNDING_BACK_NS
        try:
            settled = await self._history.funding(market, start_ns=start_ns)
        except FeedError as error:
            self._fault("funding", error, about=market.symbol)
            return
        if settled:
            newest = settled[-1]
            said = f"{100 * newest.rate:.4f} % at {topics.rfc3339(newest.time_ns)[:16]}Z, {len(settled)} in two days"
            self._tell("funding", True, said, about=market.symbol)
        else:
            advice = "right for a dated or new contract; else signals take holding it to cost nothing"
            self._tell("funding", None, "none settled in two days", advice, about=market.symbol)

    # ---- streams

    async def _listen(self, markets: list[Market], listen_s: float | None) -> None:
        try:
            groups = self._kind.groups(markets, self._specs)
        except ValueError as error:
            self._tell("streams", False, str(error), "configure fewer candle specs for it")
            return
        async with asyncio.TaskGroup() as tasks:
            for number, group in enumerate(groups, 1):
                about = f"connection {number} of {len(groups)}" if len(groups) > 1 else ""
                tasks.create_task(self._wire(about, group, listen_s), name=f"examine {self._feed.exchange} {about}")

    async def _wire(self, about: str, group: list[Market], listen_s: float | None) -> None:
        """Listen to one connection, and say what was heard."""

        def progress(heard_s: float, limit_s: float, closed: int) -> None:
            markets = f"{closed} of {len(group)} markets have closed a candle"
            self._progress(who, f"{heard_s:.0f} s of at most {limit_s:.0f} s heard, {markets}")

        who = f"{self._feed.exchange} {about}".rstrip()
        plan, how, patience_s = self._plan(group)
        listener = Listener(self._kind, group, self._specs, self._audited, ahead_ns=self._ahead_ns)
        await listener.run(patience_s=patience_s, listen_s=listen_s, progress=progress)
        self._progress(who, "")
        if listener.confirmed_after_s is None:
            self._unconfirmed(about, f"{plan}; not confirmed", listener.reason, patience_s)
            return
        self._tell("streams", True, f"{plan}; all {how} in {_ms(listener.confirmed_after_s)}", about=about)
        self._disturbances(about, listener)
        for hearing in listener.hearings.values():
            self._first(hearing, listener)
        if listen_s != 0 and not listener.mute:
            await self._audit(group, listener)

    def _plan(self, group: list[Market]) -> tuple[str, str, float]:
        """Return what is planned on a connection, what its confirmation means, and for how long to wait for that, s."""
        if self._feed.exchange not in CODECS:
            return "through ccxt", "told by a first trade", CONFIRM_S
        codec = CODECS[self._feed.exchange](group, dict.fromkeys((market.symbol for market in group), self._specs))
        patience_s = CONFIRM_S + codec.request_spacing_s * (len(codec.subscribe()) + 1)
        plan = f"{len(codec.streams)} planned, {codec.load} of the {codec.capacity} that a connection may carry"
        return plan, "listed by the exchange" if codec.confirm() else "acknowledged", patience_s

    def _unconfirmed(self, about: str, what: str, reason: str, patience_s: float) -> None:
        if reason or self._feed.exchange in CODECS:
            said, advice = words(reason or f"no answer in {patience_s:.0f} s")
            self._tell("streams", False, f"{what}: {said}", advice, about=about)
        else:
            said = f"{what}: no trade in {patience_s:.0f} s, and ccxt knows of nothing else that would"
            self._tell("streams", None, said, "right for a quiet market", about=about)

    def _disturbances(self, about: str, listener: Listener) -> None:
        if listener.losses:
            said, advice = words(listener.reason)
            lost = f"lost {listener.losses} time{'s' * (listener.losses > 1)} in {listener.heard_s:.0f} s: {said}"
            self._tell("streams", None, lost, advice, about=about)
        for what, count in listener.malformed.most_common(3):
            advice = "the exchange may have changed its protocol: record it with `lstmd record` and report it"
            self._tell("streams", None, f"{count} frames not understood: {what}", advice, about=about)

    def _first(self, hearing: Hearing, listener: Listener) -> None:
        """Say when the first data came; a mark price comes always, a trade when there is one, a kline mostly then."""
        heard = hearing.first
        parts = [
            f"{kind} after {_ms(first.after_s)}" + ("" if first.age_s is None else f" ({_ms(max(0, first.age_s))} old)")
            for kind, first in heard.items()
        ]
        missing = [kind for kind in listener.kinds if kind not in heard]
        if missing:
            parts.append(f"no {' and no '.join(missing)} in {listener.heard_s:.0f} s")
        if listener.mute and heard:
            parts.append("then silence")
        ok, advice = _judged(hearing, missing, is_mute=listener.mute)
        self._tell("first data", ok, "; ".join(parts), advice, about=hearing.market.symbol)

    # ---- candles

    async def _audit(self, group: Sequence[Market], listener: Listener) -> None:
        """Hold what we made of the trades against the candles on the stream and, once those are final, over REST."""
        try:
            await settled(listener.hearings.values(), self._history)
        except FeedError as error:
            self._fault("candles", error)
        else:
            await self._each(group, lambda market: self._compare(listener.hearings[market.symbol], listener.heard_s))

    async def _compare(self, hearing: Hearing, heard_s: float) -> None:
        about, spec = hearing.market.symbol, hearing.spec
        if not hearing.own:
            said = f"no whole {spec} candle in {heard_s:.0f} s, none compared"
            self._tell("candles", None, said, f"listen longer: --listen {max(150, 3 * heard_s):.0f}", about=about)
            return
        try:
            theirs = {"its stream": hearing.official, "REST": await rows(hearing, self._history)}
        except FeedError as error:
            self._fault("candles", error, about=about)
            return
        seqs = sorted(seq for seq in hearing.own if any(seq in official for official in theirs.values()))
        sources = [source for source, official in theirs.items() if official.keys() & hearing.own.keys()]
        wrong = [
            f"{topics.rfc3339(own.close_time_ns)[:16]}Z {said} by {source}"
            for own in map(hearing.own.__getitem__, seqs)
            for source, official in theirs.items()
            if own.seq in official and (said := _difference(own, official[own.seq]))
        ]
        count = f"{len(seqs)} {spec} candle{'s' * (len(seqs) != 1)} compared with {' and '.join(sources)}"
        if wrong:
            advice = "trades are missing, or read otherwise than the exchange does: record them with `lstmd record`"
            self._tell("candles", False, f"{count}: {'; '.join(wrong[:2])}", advice, about=about)
        elif seqs:
            self._tell("candles", True, f"{count}, equal to tick and lot", about=about)
        else:
            self._tell("candles", None, f"the exchange has none of our {spec} candles", "listen again", about=about)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"


def _judged(hearing: Hearing, missing: Sequence[str], *, is_mute: bool) -> tuple[bool | None, str]:
    """Say whether what was heard first is as it should be, and what to do if not."""
    if missing and not hearing.market.trading:
        return None, "right for a market that is halted"
    if is_mute or not hearing.first:
        return False, "its data is lost on the way: try without a proxy, and look at the exchange's status"
    if "mark price" in missing:
        return False, "it is due every few seconds: signals on quiet candles wait for it"
    if missing:
        return None, "right for a quiet market" if "trade" in missing else "right where klines come once a minute"
    age_s = hearing.first["mark price"].age_s or 0.0
    return (None, "the way here is slow, or the clock above is wrong") if age_s > OLD_S else (True, "")


def _difference(own: Candle, official: Candle) -> str:
    """Name what differs between our candle and the exchange's, empty if nothing does."""
    differences = own.differences(official)
    return ", ".join(f"{name} {getattr(own, name)} here, {getattr(official, name)}" for name in differences)
