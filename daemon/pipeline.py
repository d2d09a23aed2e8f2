"""Events in, effects out: the one function that live and replay share. Pure.

A `MarketPipeline` owns what is known of one market (sequence of trades, the exchange's time, forming candles, ledgers);
the `Pipeline` routes events to it and collects the work of all lines for the shell to commit and publish.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from daemon import topics
from daemon.line import Cause, Journal, Line, LineWork
from daemon.topics import Context, Live
from feeds.closing import Closer
from feeds.events import FundingSettlement, Kline, MarketEvent, MarketTrade, MarkPrice
from feeds.market import Candle, CandleSpec, Market, Trade
from feeds.sequence import GAP, NEXT, ExchangeClock, Reorder, Verdict, sequence_of
from feeds.stitch import Stitch
from feeds.traits import Identity, Traits
from inference.engine import MarketEngine, Model, Peek, Phase, peek
from inference.funding import FundingBook
from inference.revisions import RevisionBook
from inference.signals import Decision
from inference.stopwatch import Stopwatch

CONFIRMED_MAX = 1000
"""Candles that may wait to be compared, while some are not confirmed; past it they are compared once more."""


class Channel:
    """One spec of a market: what closes its candles, and where they go."""

    def __init__(self, closer: Closer, line: Line, *, has_kline: bool) -> None:
        self.closer, self.line, self.has_kline = closer, line, has_kline
        self.confirmed: deque[int] = deque(maxlen=CONFIRMED_MAX)
        """Ordinals whose closed kline came on the stream lately."""


class MarketPipeline:
    """Everything known of one market."""

    def __init__(
        self,
        market: Market,
        traits: Traits,
        *,
        base_topic: str,
        worked: Callable[[Line], None] = lambda _: None,
        watch: Stopwatch | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.market, self.traits, self._worked, self._watch = market, traits, worked, watch or Stopwatch()
        self._journal = journal
        self.clock = ExchangeClock()
        self.funding = FundingBook()
        self.channels: dict[str, Channel] = {}
        self.stitch: Stitch | None = None
        self.counts: Counter[str] = Counter()
        """Trades by what became of them, and mismatches; for metrics."""
        self.mark: MarkPrice | None = None
        self.last_event_ns = 0
        """Our clock at the newest event."""
        self._base_topic = base_topic
        self._sequence = sequence_of(traits)
        self._order = Reorder(traits.disorder_ns)
        self._seen = False

    def add(
        self,
        spec: CandleSpec,
        model: Model,
        *,
        has_kline: bool,
        by_exchange: bool,
        revisions: RevisionBook | None = None,
    ) -> Line:
        """Set up a line for `spec`; with `revisions` it waits for that of each day."""
        engine = MarketEngine(model, self.market, spec, revisions)
        engine.watch = self._watch
        line = Line(
            base_topic=self._base_topic,
            market=self.market,
            spec=spec,
            engine=engine,
            funding=self.funding,
            context=self._context,
            worked=self._worked,
            journal=self._journal,
        )
        closer = Closer(self.market, spec, self.traits, has_kline=has_kline, by_exchange=by_exchange)
        self.channels[spec.text] = Channel(closer, line, has_kline=has_kline)
        return line

    def stitch_from(self, start_ns: int) -> None:
        """Feed the channels that have no klines through a stitch that begins at `start_ns`."""
        self.stitch = Stitch(start_ns)
        for channel in self.channels.values():
            if not channel.has_kline:
                channel.closer.see(start_ns)

    # ---- the connection

    def connected(self) -> None:
        """Note that the streams are confirmed: from the next event on nothing escapes."""
        self._seen = True

    def lost(self) -> None:
        """Note that trades are missed from now on, until `connected`."""
        self._seen = False
        self.doubt()

    def doubt(self) -> None:
        """Note that trades may be missing before the next."""
        self._order.clear()  # what would have gone before them may be missing
        for channel in self.channels.values():
            channel.closer.doubt()
        if self.stitch:
            self.stitch.doubt()

    # ---- events

    def handle(self, event: MarketEvent) -> None:
        """Take one event of this market."""
        if isinstance(event, MarketTrade):
            self.trade(event.trade)
        elif isinstance(event, MarkPrice):
            self.last_event_ns = event.receive_time_ns
            if self.clock.believes("mark", event.event_time_ns):
                self.mark = event
                self._time(Cause(event.event_time_ns, event.receive_time_ns))
        else:
            self._kline(event)

    def trade(self, trade: Trade) -> None:
        """Take a trade."""
        self.last_event_ns = trade.receive_time_ns
        if not self.clock.believes("trade", trade.event_time_ns):
            self.counts["future"] += 1
            self._passed_over()
            return
        verdict = self._sequence.take(trade)
        self.counts[verdict] += 1
        cause = Cause(trade.event_time_ns, trade.receive_time_ns)
        if verdict is NEXT:
            self._ordered(self._order.add(trade), cause)
        elif verdict is GAP:
            self._lose()
            self._ordered(self._order.add(trade), cause)
        elif verdict is Verdict.PAST:
            self._passed_over()
        if self.stitch:
            self._stitched(self.stitch.trade(trade), cause)

    def _passed_over(self) -> None:
        """Note that a candle goes on without a trade; where trades are numbered, the next one shows it."""
        if self.traits.identity is not Identity.NUMBERED:
            self._order.clear()
            self._lose()

    def _lose(self) -> None:
        for channel in self.channels.values():
            if channel.has_kline:
                channel.closer.lose()

    def _ordered(self, trades: Iterable[Trade], cause: Cause) -> None:
        for trade in trades:
            for channel in self.channels.values():
                if channel.has_kline and (closed := channel.closer.trade(trade)):
                    self._offer(channel, closed, cause)

    def fill(self, page: list[Trade], *, at_end: bool) -> None:
        """Take a fetched page of trades for the stitch."""
        assert self.stitch is not None
        newest_ns = page[-1].event_time_ns if page else self.clock.now_ns
        self._stitched(self.stitch.fill(page, at_end=at_end), Cause(newest_ns))

    def _stitched(self, trades: Iterable[Trade], cause: Cause) -> None:
        for trade in trades:
            for channel in self.channels.values():
                if not channel.has_kline:
                    self._offer(channel, channel.closer.trade(trade), cause)

    def _kline(self, event: Kline) -> None:
        self.last_event_ns = event.receive_time_ns
        channel = self.channels.get(event.spec.text)
        # A closed kline claims that its interval is over, whatever the time of its event.
        reached_ns = max(event.event_time_ns, event.candle.close_time_ns if event.candle.closed else 0)
        if channel is None or not self.clock.believes("kline", reached_ns):
            return
        cause = Cause(event.event_time_ns, event.receive_time_ns)
        if not event.candle.closed:
            # Where the exchange gives a kline no time but its open, nothing says since when all trades are seen.
            if event.event_time_ns > event.candle.open_time_ns:
                self._time(cause)
        else:
            channel.confirmed.append(event.candle.seq)
            if event.candle.seq < channel.line.next_seq:
                self.audit(channel, event.candle)
            else:
                self._offer(channel, channel.closer.kline(event.candle), cause)

    def audit(self, channel: Channel, official: Candle) -> None:
        """Compare a candle of ours with the exchange's and repair ours where they differ."""
        if not channel.line.audit(official):
            self.counts["mismatch"] += 1

    def _time(self, cause: Cause) -> None:
        self._ordered(self._order.until(cause.event_time_ns), cause)
        for channel in self.channels.values():
            if self._seen and channel.has_kline:  # a stitch says for itself from where on it has all
                channel.closer.see(cause.event_time_ns)
            if channel.has_kline or (self.stitch and self.stitch.wants is None):
                self._offer(channel, channel.closer.time(cause.event_time_ns), cause)

    def _offer(self, channel: Channel, closed: Sequence[Candle], cause: Cause) -> None:
        if not closed:
            return  # only what closes can differ
        for own, official in channel.closer.take_mismatches():
            self.counts["mismatch"] += 1
            channel.line.differs(own, official)
        for candle in closed:
            channel.line.offer(candle, cause)

    def settle_funding(self, settlements: list[FundingSettlement], asked_at_ns: int) -> None:
        """Bring the funding book up to date and go on with the lines that waited for it."""
        self.funding.extend([(s.time_ns, s.rate) for s in settlements], asked_at_ns=asked_at_ns)
        self.go_on()

    def go_on(self) -> None:
        """Go on with the lines that waited for funding or for a day's calibration."""
        for channel in self.channels.values():
            channel.line.drain()

    def _context(self) -> Context:
        mark = self.mark
        if mark is None:
            return Context()
        next_ns = mark.next_funding_time_ns
        return Context(
            funding_rate=mark.funding_rate,
            next_funding_time=topics.rfc3339(next_ns) if next_ns else None,
            basis=round(mark.mark_price / mark.index_price - 1.0, 8) if mark.index_price else None,
            open_interest=mark.open_interest,
        )


class Pipeline:
    """All markets of a daemon under one model."""

    def __init__(
        self, model: Model, *, base_topic: str, watch: Stopwatch | None = None, journal: Journal | None = None
    ) -> None:
        """Set up; without a `watch` nobody says where a candle's time goes. For `journal` see `Line`."""
        self.model, self._watch, self._journal = model, watch or Stopwatch(), journal
        self.base_topic = base_topic
        self.markets: dict[tuple[str, str], MarketPipeline] = {}
        self._moved: set[tuple[str, str]] = set()
        self._busy: set[tuple[str, str]] = set()
        """Markets with work to take."""

    def add(self, market: Market, traits: Traits) -> MarketPipeline:
        """Set up a market of an exchange with these traits."""
        pipeline = MarketPipeline(
            market,
            traits,
            base_topic=self.base_topic,
            worked=lambda line: self._busy.add(line.key),
            watch=self._watch,
            journal=self._journal,
        )
        self.markets[market.exchange, market.symbol] = pipeline
        return pipeline

    def remove(self, exchange: str, symbol: str) -> None:
        """Let go of a market."""
        self.markets.pop((exchange, symbol), None)
        self._moved.discard((exchange, symbol))

    @property
    def now_ns(self) -> int:
        """The exchanges' time, by the newest of their events; 0 before any."""
        return max((pipeline.clock.now_ns for pipeline in self.markets.values()), default=0)

    def handle(self, events: Iterable[MarketEvent]) -> None:
        """Take market events in the order they were received."""
        self._watch.take()
        for event in events:
            key = (event.market.exchange, event.market.symbol)
            if pipeline := self.markets.get(key):
                pipeline.handle(event)
                self._moved.add(key)

    def take_work(self) -> list[tuple[Line, LineWork]]:
        """Hand over what all lines have done since the last call."""
        work = []
        busy, self._busy = self._busy, set()
        for pipeline in [self.markets[key] for key in sorted(busy) if key in self.markets]:
            for channel in pipeline.channels.values():
                done = channel.line.take_work()
                if done.rows or done.drafts or done.mismatches:
                    work.append((channel.line, done))
        return work

    @property
    def has_work(self) -> bool:
        """Whether there is anything for `take_work`."""
        return bool(self._busy)

    @property
    def moved(self) -> int:
        """How many markets `live` has not answered for since they moved."""
        return len(self._moved)

    def live(self, at_most: int | None = None) -> list[tuple[str, Live]]:
        """Answer what the signals would be now, for the markets that moved since they were asked: topic and payload.

        Some of them where there are more than `at_most`.
        """
        questions: list[Peek] = []
        asked: list[tuple[MarketPipeline, Channel, Candle]] = []
        keys = [self._moved.pop() for _ in range(min(self.moved, self.moved if at_most is None else at_most))]
        for pipeline in map(self.markets.__getitem__, keys):
            for channel in pipeline.channels.values():
                line, forming = channel.line, channel.closer.forming()
                if forming is None or line.engine.phase is not Phase.READY or forming.seq != line.next_seq:
                    continue
                if line.engine.calibration(forming.seq) is None:
                    continue  # it closes at midnight or later, on a day whose revision nobody can know yet
                charge = pipeline.funding.charge(forming.close_time_ns, line.engine.horizon * line.spec.interval_ns)
                questions.append(Peek(line.engine, forming, charge or 0.0))
                asked.append((pipeline, channel, forming))
        answers = []
        for (pipeline, channel, forming), decision in zip(asked, peek(questions), strict=True):
            answers.append((channel.line.live_topic, self._live(pipeline, channel, forming, decision)))
        return answers

    def _live(self, pipeline: MarketPipeline, channel: Channel, forming: Candle, decision: Decision) -> Live:
        line = channel.line
        return Live(
            seq=forming.seq,
            exchange=line.market.exchange,
            symbol=line.market.symbol,
            spec=line.spec.text,
            model=self.model.id,
            event_time=topics.rfc3339(pipeline.clock.now_ns),
            close_time=topics.rfc3339(forming.close_time_ns) if line.spec.by_time else None,
            complete=channel.closer.complete,
            side=decision.side,
            p_short=decision.p_short,
            p_flat=decision.p_flat,
            p_long=decision.p_long,
            confidence=decision.confidence,
            expected_move_bps=decision.expected_move_bps,
            volatility_bps=decision.volatility_bps,
            edge_bps=decision.edge_bps,
            size_hint=decision.size_hint,
            price=forming.close,
        )
