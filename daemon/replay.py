"""A tape in, the same signals out: the pipeline of the daemon over recorded frames, without broker, network or clock.

A foreign tape knows nothing from before its first trade, so that is taken for the market's listing: the folds begin
there, as they do for a daemon that meets a market listed at that moment. A recording of ours says when its markets were
listed, what their funding was, and where connections began and ended: its signals are those of a daemon that listened
at the same time, to the bit, from the first epoch on whose whole fold it holds. Before, and where folds differ, nothing
or another `inputs_hash` says so. What a tape lacks is marked `void`, ``not_in_tape``.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from daemon import topics
from daemon.line import Cause, Line, LineWork
from daemon.pipeline import MarketPipeline, Pipeline
from feeds.capture import Frame
from feeds.events import Entry, FundingSettlement, Kline, MarketEvent, MarketTrade, MarkPrice
from feeds.exchanges import CODECS
from feeds.exchanges.base import Codec
from feeds.lanes import Lanes
from feeds.market import NS_PER_DAY, CandleSpec, Market
from feeds.recording import Funding, Header, Record
from feeds.sequence import ExchangeClock, Verdict
from feeds.traits import Identity
from inference.engine import Model
from inference.revisions import Revision, RevisionBook, date_of, day_of

_DECIMALS = 12
"""Scaled integers of any scale give the same candles; no exchange writes more decimals than this."""
_FOREVER_NS = 1 << 62


class TapeError(Exception):
    """The tape cannot give what was asked for; the text says why."""


class Output(NamedTuple):
    """A closed candle or a durable message of a tape."""

    kind: str
    """``candle`` or ``signal``."""
    topic: str
    payload: bytes


class Replay:
    """The pipeline set up for the markets of a tape."""

    def __init__(
        self,
        model: Model,
        *,
        exchange: str,
        symbols: Sequence[str],
        specs: list[CandleSpec],
        base_topic: str,
        by_exchange: bool = False,
        revisions: Sequence[Revision] = (),
    ) -> None:
        """Set up; `symbols` may be empty for `play`, which then takes all.

        With `revisions` time candles go under that of their day; without any, under the artifact's own calibration.

        Raises:
            TapeError: the revisions are another model's.

        """
        self._books = _books(model.id, revisions)
        self._kind, self._symbols = CODECS[exchange], symbols
        self._pipeline = Pipeline(model, base_topic=base_topic)
        self._specs, self._by_exchange = specs, by_exchange
        self._run_ns, self._wires = 0, list[_Wire]()

    # ---- foreign tapes

    def run(self, frames: Iterable[Frame]) -> Iterator[Output]:
        """Yield candles and messages in the order in which the daemon would have committed them.

        Raises:
            TapeError: no market of a symbol's name can be on the exchange, or the tape cannot tell what is asked for.

        """
        codec = self._codec()
        for frame in frames:
            for event in codec.decode(frame.text, frame.receive_time_ns):
                if isinstance(event, MarketTrade | MarkPrice | Kline):
                    if self._known(event) or self._list(event):
                        self._hear(event, frame.receive_time_ns)
                    yield from self._done()

    def _codec(self) -> Codec:
        try:
            markets = [
                Market(
                    exchange=self._kind.name,
                    symbol=symbol,
                    native=self._kind.native_of(symbol),
                    price_decimals=_DECIMALS,
                    size_decimals=_DECIMALS,
                )
                for symbol in self._symbols
            ]
        except ValueError as error:
            raise TapeError(str(error)) from None
        return self._kind(markets, dict.fromkeys(self._symbols, self._specs))

    def _list(self, event: MarketEvent) -> bool:
        """Take a market's first trade for its listing."""
        if not isinstance(event, MarketTrade):
            return False
        first_ns = event.trade.event_time_ns
        pipeline = self._add(msgspec.structs.replace(event.market, listed_at_ns=first_ns), first_ns)
        pipeline.settle_funding([], _FOREVER_NS)  # a tape of trades says nothing of funding, so none is weighed
        for spec in self._specs:
            channel = pipeline.channels[spec.text]
            if spec.by_time:
                channel.line.begin(newest_seq=spec.seq_at(first_ns), stream_seq=None, journal=[])
                channel.closer.see(spec.open_of(first_ns))
            else:
                channel.line.begin_events(stream_seq=None, first_day=first_ns // NS_PER_DAY)
        return True

    # ---- recordings

    def play(self, recording: Iterable[tuple[Header, Record]]) -> Iterator[Output]:
        """Yield as `run` does what a daemon that listened at the same time would have.

        Raises:
            TapeError: the recording cannot tell what is asked for.

        """
        for header, record in recording:
            if header.run_ns != self._run_ns:
                self._take_up(header)
            if record.entry is Entry.FUNDING:
                self._settle(msgspec.json.decode(record.payload, type=Funding))
            else:
                self._take(self._wires[record.wire], record, header.exchange_ahead_ns)
            yield from self._done()

    def _take_up(self, header: Header) -> None:
        """Begin with a recorder's run: its markets, and connections of its own."""
        self._run_ns, now_ns = header.run_ns, header.run_ns + header.exchange_ahead_ns
        self._wires = [_Wire(self._kind, markets, header.specs) for markets in header.wires]
        missing = [symbol for symbol in self._symbols if symbol not in {market.symbol for market in header.markets}]
        if missing:
            raise TapeError(f"the recording has no {', '.join(missing)}")
        for market in header.markets:
            if self._symbols and market.symbol not in self._symbols:
                continue
            known = self._pipeline.markets.get((market.exchange, market.symbol))
            if known:
                known.clock.set(now_ns)
            else:
                self._begin(self._add(_exact(market), now_ns), now_ns)

    def _begin(self, pipeline: MarketPipeline, now_ns: int) -> None:
        """Begin event candles with the first whole day; time candles begin with the first that is whole."""
        listed_ns = pipeline.market.listed_at_ns or 0
        first_day = now_ns // NS_PER_DAY + (listed_ns < now_ns)
        for channel in pipeline.channels.values():
            if not channel.line.spec.by_time:
                channel.line.begin_events(stream_seq=None, first_day=first_day)

    def _settle(self, funding: Funding) -> None:
        if pipeline := self._pipeline.markets.get((self._kind.name, funding.symbol)):
            settled = [FundingSettlement(time_ns, rate) for time_ns, rate in funding.settlements]
            pipeline.settle_funding(settled, funding.asked_at_ns)

    def _take(self, wire: "_Wire", record: Record, ahead_ns: int) -> None:
        was_live, interruptions = wire.lanes.live, wire.lanes.interruptions
        for event in wire.lanes.take(record.entry, record.lane, record.time_ns, record.payload):
            if isinstance(event, MarketTrade | MarkPrice | Kline) and self._known(event):
                self._hear(event, record.time_ns + ahead_ns)
        turned, interrupted = wire.lanes.live is not was_live, wire.lanes.interruptions > interruptions
        if turned or interrupted:
            for symbol in wire.symbols:
                if market := self._pipeline.markets.get((self._kind.name, symbol)):
                    if turned:
                        self._turn(market, live=wire.lanes.live)
                    if interrupted:
                        self._interrupt(market)

    def _turn(self, market: MarketPipeline, *, live: bool) -> None:
        (market.connected if live else market.lost)()

    def _interrupt(self, market: MarketPipeline) -> None:
        market.doubt()
        events = [spec.text for spec in self._specs if not spec.by_time]
        if events and market.traits.identity is not Identity.NUMBERED:
            raise TapeError(f"a connection was lost, so {', '.join(events)} candles cannot be told")
        self._settle_holes(market)

    # ---- both

    def _known(self, event: MarketEvent) -> bool:
        return (event.market.exchange, event.market.symbol) in self._pipeline.markets

    def _add(self, market: Market, now_ns: int) -> MarketPipeline:
        pipeline = self._pipeline.add(market, self._kind.traits)
        pipeline.clock.set(now_ns)
        for spec in self._specs:
            pipeline.add(
                spec,
                self._pipeline.model,
                has_kline=True,  # nothing can be fetched here, so no candle waits for a stitch
                by_exchange=self._by_exchange,
                revisions=self._books.setdefault(spec.text, RevisionBook("")) if self._books and spec.by_time else None,
            )
        return pipeline

    def _hear(self, event: MarketEvent, now_ns: int) -> None:
        """Take an event that came when the exchange's clock, as far as the receiver knew, said `now_ns`."""
        market = self._pipeline.markets[event.market.exchange, event.market.symbol]
        # A tape has one source of time where live has several: its receiver's clock is the second witness to a jump.
        if (witness_ns := now_ns - ExchangeClock.JUMP_NS // 2) > market.clock.now_ns:
            market.clock.set(witness_ns)
        self._pipeline.handle([event])
        self._settle_holes(market)

    def _settle_holes(self, market: MarketPipeline) -> None:
        """Settle that what is missing before a closed candle will not come."""
        for channel in market.channels.values():
            line = channel.line
            if line.spec.by_time:
                line.begin_with_first()
                line.void_holes(Cause(market.clock.now_ns, void_reason="not_in_tape"))
            elif market.counts[Verdict.GAP]:
                raise TapeError(f"trades are missing on the tape, so {line.spec} candles cannot be told")
            if line.waits_for_calibration:
                day = date_of(line.next_seq * line.spec.interval_ns // NS_PER_DAY)
                raise TapeError(f"no revision of {line.spec} candles for {day} is given")

    def _done(self) -> Iterator[Output]:
        for line, work in self._pipeline.take_work():
            yield from self._outputs(line, work)

    def _outputs(self, line: Line, work: LineWork) -> Iterator[Output]:
        topic = topics.spec_topic(self._pipeline.base_topic, line.market, line.spec, "candle")
        for candle in work.candles:
            yield Output("candle", topic, topics.encode(topics.candle_message(line.market, line.spec, candle)))
        for draft in work.drafts:
            yield Output("signal", draft.topic, topics.with_context(draft.identity, topics.encode(draft.context)))


class _Wire:
    """One group of connections of a recording."""

    def __init__(self, kind: type[Codec], markets: Sequence[Market], specs: Sequence[str]) -> None:
        exact = [_exact(market) for market in markets]
        self.symbols = [market.symbol for market in markets]
        parsed = [CandleSpec.parse(text) for text in specs]
        wanted = dict.fromkeys(self.symbols, parsed)
        self.lanes = Lanes(lambda: kind(exact, wanted))


def _exact(market: Market) -> Market:
    """Let an exchange refine its ticks from one recording to the next."""
    return msgspec.structs.replace(market, price_decimals=_DECIMALS, size_decimals=_DECIMALS)


def _books(model: str, revisions: Sequence[Revision]) -> dict[str, RevisionBook]:
    """Sort revisions by candle spec."""
    books: dict[str, RevisionBook] = {}
    for revision in revisions:
        if revision.model != model:
            raise TapeError(f"the revision for {revision.day} is of {revision.model}, not of {model}")
        day = day_of(revision.day)
        for spec, lines in revision.calibration.items():
            book = books.setdefault(spec, RevisionBook(""))
            if not book.lacking(day, day):
                raise TapeError(f"two revisions for {revision.day} are given")
            book.add(day, lines)
    return books
