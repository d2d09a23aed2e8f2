"""A tape in, the same signals out: the pipeline of the daemon over recorded frames, without broker, network or clock.

A tape knows nothing from before its first trade, so that is taken for the market's listing: the folds begin there, as
they do for a daemon that meets a market listed at that moment. What a tape lacks is marked `void`, ``not_in_tape``.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from daemon import topics
from daemon.line import Cause, Line, LineWork
from daemon.pipeline import MarketPipeline, Pipeline
from feeds.capture import Frame
from feeds.events import Kline, MarketEvent, MarketTrade, MarkPrice
from feeds.exchanges import CODECS
from feeds.market import NS_PER_DAY, CandleSpec, Market
from feeds.sequence import ExchangeClock, Verdict
from inference.engine import Model

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
        symbols: list[str],
        specs: list[CandleSpec],
        base_topic: str,
        by_exchange: bool = False,
    ) -> None:
        """Set up; nothing is known of a market until its first trade.

        Raises:
            TapeError: no market of that name can be on the exchange.

        """
        kind = CODECS[exchange]
        try:
            markets = [
                Market(
                    exchange=exchange,
                    symbol=symbol,
                    native=kind.native_of(symbol),
                    price_decimals=_DECIMALS,
                    size_decimals=_DECIMALS,
                )
                for symbol in symbols
            ]
        except ValueError as error:
            raise TapeError(str(error)) from None
        self._codec = kind(markets, dict.fromkeys(symbols, specs))
        self._pipeline = Pipeline(model, base_topic=base_topic)
        self._specs, self._by_exchange = specs, by_exchange

    def run(self, frames: Iterable[Frame]) -> Iterator[Output]:
        """Yield candles and messages in the order in which the daemon would have committed them."""
        for frame in frames:
            for event in self._codec.decode(frame.text, frame.receive_time_ns):
                if isinstance(event, MarketTrade | MarkPrice | Kline):
                    self._take(event, frame.receive_time_ns)
                    for line, work in self._pipeline.take_work():
                        yield from self._outputs(line, work)

    def _take(self, event: MarketEvent, receive_time_ns: int) -> None:
        market = self._pipeline.markets.get((event.market.exchange, event.market.symbol))
        if market is None:
            if not isinstance(event, MarketTrade):
                return
            market = self._begin(event.market, event.trade.event_time_ns)
        # A tape has one source of time where live has several: its receiver's clock is the second witness to a jump.
        market.clock.set(receive_time_ns - ExchangeClock.JUMP_NS // 2)
        self._pipeline.handle([event])
        for channel in market.channels.values():
            if channel.line.spec.by_time:
                channel.line.void_holes(Cause(market.clock.now_ns, void_reason="not_in_tape"))
            elif market.counts[Verdict.GAP]:
                raise TapeError(f"trades are missing on the tape, so {channel.line.spec} candles cannot be told")

    def _begin(self, market: Market, first_ns: int) -> MarketPipeline:
        pipeline = self._pipeline.add(msgspec.structs.replace(market, listed_at_ns=first_ns))
        pipeline.clock.set(first_ns)
        pipeline.settle_funding([], _FOREVER_NS)  # a tape of trades says nothing of funding, so none is weighed
        for spec in self._specs:
            line = pipeline.add(
                spec,
                self._pipeline.model,
                grace_ns=self._codec.grace_ns,
                has_kline=True,  # nothing can be fetched here, so no candle waits for a stitch
                by_exchange=self._by_exchange,
            )
            if spec.by_time:
                line.begin(newest_seq=spec.seq_at(first_ns), stream_seq=None, journal=[], snapshot=None)
                pipeline.channels[spec.text].closer.see(spec.open_of(first_ns))
            else:
                line.begin_events(stream_seq=None, first_day=first_ns // NS_PER_DAY)
        return pipeline

    def _outputs(self, line: Line, work: LineWork) -> Iterator[Output]:
        topic = topics.spec_topic(self._pipeline.base_topic, line.market, line.spec, "candle")
        for candle in work.candles:
            yield Output("candle", topic, topics.encode(topics.candle_message(line.market, line.spec, candle)))
        for draft in work.drafts:
            yield Output("signal", draft.topic, topics.with_context(draft.identity, topics.encode(draft.context)))
