"""Events in, messages out: real trades with losses and lies among them give the messages of the undisturbed candles."""

import random

import msgspec
import pytest

from daemon import topics
from daemon.line import Cause, Line
from daemon.pipeline import MarketPipeline, Pipeline
from feeds.events import FundingSettlement, Kline, MarketEvent, MarketTrade, MarkPrice
from feeds.exchanges import CODECS
from feeds.exchanges.binance import BinanceCodec
from feeds.market import NS_PER_S, Candle, CandleSpec, Trade
from feeds.traits import Identity
from inference.engine import Model
from inference.signals import Rules
from tests.daemon.lines import EPOCH, MODEL, decoded, new_line, small_artifact
from tests.daemon.tapes import APE, ape_events, folded

HOURS = 4
START_S = 40 * 60
"""How long after the tape's first trade a daemon comes in."""
SETTLE_NS = 2 * NS_PER_S
KLINE_LAG_NS = NS_PER_S // 4
PAGE = 500
FINE = Model(small_artifact("1m", "5s", "100t"), Rules())


class Exchange:
    """The tape as the exchange would serve it, and a pipeline that follows it."""

    def __init__(self, *specs: str, model: Model = MODEL) -> None:
        self.trades = ape_events(HOURS)
        self.begin_ns = self.trades[0].trade.event_time_ns + START_S * NS_PER_S
        self.pipeline = Pipeline(model, base_topic="lstmd")
        self.market: MarketPipeline = self.pipeline.add(APE, BinanceCodec.traits)
        self.market.clock.set(self.begin_ns)
        self.market.settle_funding([], 1 << 62)
        self.told: dict[str, dict[int, bytes]] = {}
        self.repairs = 0
        self.now_ns = self.begin_ns
        for text in specs or ("1m",):
            spec = CandleSpec.parse(text)
            has_kline = CODECS["binance"].has_kline(spec)
            line = self.market.add(spec, model, has_kline=has_kline, by_exchange=False)
            if spec.by_time:
                line.begin(newest_seq=spec.seq_at(self.begin_ns), stream_seq=None, journal=[])
            self.told[text] = {}

    @property
    def line(self) -> Line:
        (channel,) = self.market.channels.values()
        return channel.line

    def live_events(self) -> list[MarketEvent]:
        """Return trades from the daemon's start on, with each second's mark price and closed candles among them."""
        trades = [event for event in self.trades if event.trade.event_time_ns >= self.begin_ns]
        last_s = trades[-1].trade.event_time_ns // NS_PER_S
        marks = [mark(second * NS_PER_S) for second in range(self.begin_ns // NS_PER_S + 1, last_s)]
        klines = [kline(candle) for candle in folded(HOURS, "1m").values() if candle.close_time_ns > self.begin_ns]
        return sorted([*trades, *marks, *klines], key=time_of)

    def take(self, event: MarketEvent) -> None:
        self.now_ns = max(self.now_ns, time_of(event))
        self.pipeline.handle([event])
        self.repair()

    def repair(self) -> None:
        """Do what the shell does: ask for what is missing and final, and collect the work."""
        for text, channel in self.market.channels.items():
            if channel.has_kline:
                hole = channel.line.missing(self.market.clock.now_ns - SETTLE_NS)
                if hole is not None:
                    have = [folded(HOURS, text)[seq] for seq in range(hole[0], hole[1] + 1)]
                    channel.line.backfill(have, hole, self.market.clock.now_ns, by_hand=True)
                    self.repairs += 1
        for line, work in self.pipeline.take_work():
            self.told[line.spec.text].update({draft.seq: draft.identity for draft in work.drafts})

    def fetch(self) -> None:
        """Serve a page of the trades that the stitch wants."""
        assert self.market.stitch is not None
        while wants := self.market.stitch.wants:
            known = [e.trade for e in self.trades if e.trade.event_time_ns <= self.now_ns]
            if wants.from_id is None:
                assert wants.start_ns is not None
                first = next(t.id for t in known if t.event_time_ns >= wants.start_ns) - 1
            else:
                first = wants.from_id
            page = [t for t in known if t.id >= first][:PAGE]
            self.repairs += 1
            self.market.fill(page, at_end=len(page) < PAGE)


def mark(time_ns: int) -> MarkPrice:
    return MarkPrice(APE, time_ns, time_ns, 1.0, 1.0, 1e-4, time_ns + 3600 * NS_PER_S)


def kline(candle: Candle) -> Kline:
    time_ns = candle.close_time_ns + KLINE_LAG_NS
    return Kline(APE, CandleSpec.parse("1m"), time_ns, time_ns, candle)


def time_of(event: MarketEvent) -> int:
    return event.trade.event_time_ns if isinstance(event, MarketTrade) else event.event_time_ns


def direct(spec_text: str, model: Model, first: int, last: int) -> dict[int, bytes]:
    """Return the messages of the independent fold's candles, given to a line one after the other."""
    spec = CandleSpec.parse(spec_text)
    line = new_line(model, APE, spec)
    line.begin(newest_seq=first, stream_seq=None, journal=[])
    candles = folded(HOURS, spec_text)
    for seq in range(line.next_seq, last + 1):
        line.offer(candles[seq], Cause(1, 2))
    return {draft.seq: draft.identity for draft in line.take_work().drafts}


def assert_same(exchange: Exchange, spec_text: str = "1m", model: Model = MODEL, *, at_least: int = 130) -> None:
    told = exchange.told[spec_text]
    assert len(told) >= at_least
    assert list(told) == list(range(min(told), max(told) + 1)), "in order, without a gap"
    assert told == direct(spec_text, model, min(told), max(told))
    assert all(decoded(identity).kind == "signal" for identity in told.values())


def test_real_trades_become_the_signals_of_their_candles() -> None:
    exchange = Exchange()
    for event in exchange.live_events():
        exchange.take(event)
    assert_same(exchange)
    assert exchange.repairs <= 3, "the warm-up, and the candle that was under way at the start"
    assert exchange.market.counts["mismatch"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_cuts_are_repaired_and_do_not_show(seed: int) -> None:
    exchange, rng = Exchange(), random.Random(seed)
    events = exchange.live_events()
    at = 0
    while at < len(events):
        run = at + rng.randrange(200, 1500)
        exchange.market.connected()
        for event in events[at:run]:
            exchange.take(event)
        exchange.market.lost()
        if rng.random() < 0.3:
            exchange.market.clock.set(time_of(events[min(run, len(events) - 1)]))  # REST tells the time meanwhile
            exchange.repair()
        at = run + rng.choice([0, 1, 40, 400, 1500])
    assert_same(exchange, at_least=120)
    assert exchange.repairs > 3


def lies(trade: Trade, rng: random.Random) -> list[Trade]:
    """Make trades that never were: from the future and the past, repeated, and under ids of their own."""
    hour_ns = 3600 * NS_PER_S
    base = {"price": trade.price * 3, "size": 10**9}
    made = [
        {"event_time_ns": trade.event_time_ns + rng.randrange(61 * NS_PER_S, 24 * hour_ns)},
        {"event_time_ns": trade.event_time_ns - rng.randrange(2 * NS_PER_S, hour_ns), "id": trade.id + 1},
        {"id": trade.id - rng.randrange(1000)},
        {"id": trade.id + rng.randrange(2, 10**6), "event_time_ns": trade.event_time_ns + 365 * 24 * hour_ns},
    ]
    return [msgspec.structs.replace(trade, **{**base, **lie}) for lie in made]


@pytest.mark.parametrize("seed", range(3))
def test_trades_that_cannot_be_change_no_candle(seed: int) -> None:
    exchange, rng = Exchange(), random.Random(seed)
    exchange.market.connected()
    for event in exchange.live_events():
        exchange.take(event)
        if isinstance(event, MarketTrade) and rng.random() < 0.01:
            exchange.take(MarketTrade(APE, rng.choice(lies(event.trade, rng))))
    assert_same(exchange)
    counts = exchange.market.counts
    assert counts["future"] > 10
    assert counts["past"] > 10
    assert counts["duplicate"] > 10
    assert counts["gap"] == 0
    assert exchange.repairs <= 3, "nothing had to be asked for"


def test_a_bogus_id_costs_a_repair_and_no_candle() -> None:
    exchange, rng = Exchange(), random.Random(1)
    exchange.market.connected()
    for event in exchange.live_events():
        exchange.take(event)
        if isinstance(event, MarketTrade) and rng.random() < 0.001:
            bogus = msgspec.structs.replace(event.trade, id=event.trade.id + 10**6, price=event.trade.price * 2)
            exchange.take(MarketTrade(APE, bogus))
    assert exchange.market.counts["gap"] > 5
    assert_same(exchange)


@pytest.mark.parametrize("exchange", ["bybit", "bingx"])
@pytest.mark.parametrize(
    "seconds", [(-5, 10, 70, 80, 75, 130, 190, 250), (-5, 10, 85, 130, 190, 250)], ids=["too late", "after a silence"]
)
def test_a_trade_that_is_not_taken_leaves_its_candle_to_the_exchange(exchange: str, seconds: tuple[int, ...]) -> None:
    spec = CandleSpec.parse("1m")
    market = Pipeline(MODEL, base_topic="lstmd").add(APE, CODECS[exchange].traits)
    line = market.add(spec, MODEL, has_kline=True, by_exchange=False)
    begin_ns = spec.open_of(1_700_000_000 * NS_PER_S)
    market.clock.set(begin_ns)
    line.begin(newest_seq=spec.seq_at(begin_ns), stream_seq=None, journal=[])
    market.connected()
    for number, second in enumerate(seconds, start=1):
        identity = number if market.traits.identity is Identity.UNIQUE else 0
        time_ns = begin_ns + second * NS_PER_S
        market.trade(Trade(identity, 100, 1, time_ns, 1, 1, True))
        market.handle(mark(time_ns))
    offered = [seq - spec.seq_at(begin_ns) for seq in line._waiting]
    assert 2 not in offered, "one of its trades was passed over"
    assert max(offered) >= 3


def test_klines_that_differ_are_counted_and_repaired_from_there_on() -> None:
    exchange = Exchange()
    spec = CandleSpec.parse("1m")
    opened = [e.trade.event_time_ns for e in exchange.trades if e.trade.event_time_ns % spec.interval_ns < KLINE_LAG_NS]
    wrong_seq = next(seq for seq in map(spec.seq_at, opened) if seq > spec.seq_at(exchange.begin_ns) + 30)
    for event in exchange.live_events():
        if isinstance(event, Kline) and event.candle.seq == wrong_seq:
            wrong = msgspec.structs.replace(event.candle, close=event.candle.low, volume=event.candle.volume + 1)
            event = msgspec.structs.replace(event, candle=wrong)
        exchange.take(event)
    told = exchange.told["1m"]
    assert exchange.market.counts["mismatch"] == 1
    assert list(told) == list(range(min(told), max(told) + 1))
    clean = direct("1m", MODEL, min(told), max(told))
    differing = [seq for seq in told if told[seq] != clean[seq]]
    assert differing[0] == wrong_seq + 1, "what was told of it stands; what follows knows better"
    assert max(differing) < wrong_seq + 2 * EPOCH, "an epoch later it is forgotten"


def test_looking_at_the_forming_candle_changes_no_signal() -> None:
    exchange, rng = Exchange(), random.Random(0)
    lives = 0
    for event in exchange.live_events():
        exchange.take(event)
        if rng.random() < 0.05:
            for topic, payload in exchange.pipeline.live():
                assert topic == "lstmd/binance/APE-USDT-PERP/1m/live"
                assert payload.seq == exchange.line.next_seq
                assert msgspec.json.decode(topics.encode(payload), type=topics.Live, strict=True) == payload
                lives += 1
    assert lives > 100
    assert exchange.pipeline.live() != []
    assert exchange.pipeline.live() == [], "nothing has moved since"
    assert_same(exchange)


def test_a_live_answer_is_what_the_signal_says_if_the_candle_closes_so() -> None:
    exchange = Exchange()
    events = exchange.live_events()
    last_live: dict[int, topics.Live] = {}
    for event in events[: len(events) // 4]:
        exchange.take(event)
        last_live.update({payload.seq: payload for _, payload in exchange.pipeline.live()})
    told = {seq: decoded(identity) for seq, identity in exchange.told["1m"].items()}
    both = sorted(last_live.keys() & told.keys())
    assert len(both) > 20
    for seq in both[1:]:  # of the first one, the beginning was not seen
        signal, live = told[seq], last_live[seq]
        assert isinstance(signal, topics.Signal)
        assert (live.p_long, live.side, live.edge_bps, live.size_hint, live.price) == (
            signal.p_long, signal.side, signal.edge_bps, signal.size_hint, signal.reference_price,
        )  # fmt: skip


def test_a_mark_price_before_the_stitch_hides_no_candle_from_it() -> None:
    """A market is listened to before it is taken up; what its stitch fetches begins earlier."""
    exchange = Exchange("5s", model=FINE)
    exchange.market.connected()
    exchange.take(mark(exchange.begin_ns + 7 * NS_PER_S))
    exchange.market.stitch_from(exchange.market.channels["5s"].line.next_open_ns)
    for event in exchange.live_events()[:400]:
        exchange.now_ns = time_of(event)
        exchange.pipeline.handle([event])
        exchange.fetch()
    assert exchange.line.missing(exchange.market.clock.now_ns - 10 * NS_PER_S) is None


@pytest.mark.parametrize("seed", range(3))
def test_candles_without_klines_are_stitched_over_cuts(seed: int) -> None:
    """5 s and 100-trade candles have no klines to be repaired from: every trade is fetched."""
    exchange, rng = Exchange("5s", "100t", model=FINE), random.Random(seed)
    event_line = exchange.market.channels["100t"].line
    event_line.begin_events(stream_seq=None, first_day=exchange.begin_ns // (86_400 * NS_PER_S) - 1)
    exchange.market.stitch_from(exchange.market.channels["5s"].line.next_open_ns)
    events = exchange.live_events()
    at = 0
    while at < len(events):
        run = at + rng.randrange(1000, 6000)
        exchange.now_ns = max(exchange.now_ns, time_of(events[at]))
        exchange.market.connected()
        if rng.random() < 0.5:
            exchange.fetch()
        for event in events[at:run]:
            exchange.now_ns = max(exchange.now_ns, time_of(event))
            exchange.pipeline.handle([event])
            if exchange.market.stitch and exchange.market.stitch.wants and rng.random() < 0.02:
                exchange.fetch()
        exchange.repair()
        exchange.market.lost()
        at = run + rng.choice([0, 40, 900, 4000])
    exchange.market.connected()
    exchange.now_ns = time_of(events[-1])
    exchange.fetch()
    exchange.repair()
    assert_same(exchange, "5s", FINE, at_least=1500)


def test_a_signal_waits_for_the_settlement_it_is_charged() -> None:
    exchange = Exchange()
    hour_ns = 3600 * NS_PER_S
    exchange.market.funding.asked_at_ns = exchange.begin_ns
    settled_ns = exchange.begin_ns // hour_ns * hour_ns - 7 * hour_ns
    exchange.market.settle_funding(
        [FundingSettlement(settled_ns - 8 * hour_ns, 1e-4), FundingSettlement(settled_ns, 1e-4)], exchange.begin_ns
    )
    waited = 0
    for event in exchange.live_events():
        exchange.take(event)
        now_ns = exchange.market.clock.now_ns
        if exchange.line.waits_for_funding and now_ns - exchange.market.funding.asked_at_ns > hour_ns // 6:
            waited += 1
            exchange.market.settle_funding([], now_ns)
    told = exchange.told["1m"]
    assert waited >= 1
    assert list(told) == list(range(min(told), max(told) + 1))


def test_the_context_tells_what_the_market_said_and_decides_nothing() -> None:
    exchange = Exchange()
    found = None
    for event in exchange.live_events()[:20_000]:
        exchange.pipeline.handle([event])
        for _, work in exchange.pipeline.take_work():
            found = work.drafts[-1].context if work.drafts else found
        hole = exchange.line.missing(exchange.market.clock.now_ns - SETTLE_NS)
        if hole:
            have = [folded(HOURS, "1m")[seq] for seq in range(hole[0], hole[1] + 1)]
            exchange.line.backfill(have, hole, exchange.market.clock.now_ns, by_hand=False)
    assert found is not None
    assert found.funding_rate == 1e-4
    assert found.basis == 0.0
    assert found.next_funding_time is not None
    assert msgspec.json.decode(topics.encode(found), type=topics.Context, strict=True) == found


def test_events_of_strangers_are_passed_over() -> None:
    exchange = Exchange()
    stranger = msgspec.structs.replace(APE, symbol="BTC/USDT:USDT")
    exchange.pipeline.handle([msgspec.structs.replace(mark(exchange.begin_ns), market=stranger)])
    assert exchange.pipeline.take_work() == []
    assert exchange.pipeline.live() == []
    assert exchange.pipeline.now_ns == exchange.begin_ns
