"""What a daemon needs of an exchange to listen to it: one whose protocol we speak, or any other through ccxt."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from feeds.ccxt_feed import TRAITS, CcxtClient, CcxtFeed
from feeds.errors import RequestRefused
from feeds.exchanges import CODECS, groups_of
from feeds.exchanges.base import Codec
from feeds.history.ccxt import PREFIX, build, need, timeframe
from feeds.market import CandleSpec, Market
from feeds.runner import FeedRunner, FeedSink
from feeds.traits import Traits


class Feed(Protocol):
    """Keeps connections to an exchange for a group of markets."""

    async def run(self, stop: asyncio.Event) -> None:
        """Feed the sink until `stop` is set."""

    def renew(self) -> None:
        """Connect anew for the markets as they are now, without a break: some of the list it was given have left."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a feed needs beside its markets."""

    sink: FeedSink
    now_ns: Callable[[], int]
    rng: random.Random
    log: FilteringBoundLogger
    copies: int = 1
    hindered: Callable[[str], None] = lambda _: None


class Kind(Protocol):
    """One exchange."""

    traits: Traits
    trade_history: bool
    """Whether REST serves trades far enough back to repair a gap; see `Codec`."""

    def has_kline(self, spec: CandleSpec) -> bool:
        """Tell whether the exchange has its own candles of `spec`, on a stream or over REST."""

    def groups(self, markets: Sequence[Market], specs: Sequence[CandleSpec]) -> list[list[Market]]:
        """Spread markets over feeds."""

    def feed(self, markets: Sequence[Market], specs: Sequence[CandleSpec], setting: Setting) -> Feed:
        """Make the feed of one group, which is read again with each connection."""


class Spoken:
    """An exchange with a codec."""

    def __init__(self, codec: type[Codec], *, ws_url: str | None, proxy: str | None) -> None:
        self.traits, self.trade_history = codec.traits, codec.trade_history
        self._codec, self._ws_url, self._proxy = codec, ws_url, proxy

    def has_kline(self, spec: CandleSpec) -> bool:
        """Tell whether the exchange has its own candles of `spec`."""
        return self._codec.has_kline(spec)

    def groups(self, markets: Sequence[Market], specs: Sequence[CandleSpec]) -> list[list[Market]]:
        """Spread markets over as few connections as the exchange's limits allow."""
        return groups_of(self._codec, markets, _same(markets, specs))

    def feed(self, markets: Sequence[Market], specs: Sequence[CandleSpec], setting: Setting) -> Feed:
        """Make the feed of one group."""
        wanted = _same(markets, specs)
        return FeedRunner(
            codec_factory=lambda: self._codec(markets, wanted),
            url=self._codec(markets, wanted).url(self._ws_url),
            sink=setting.sink,
            now_ns=setting.now_ns,
            rng=setting.rng,
            log=setting.log,
            copies=setting.copies,
            proxy=self._proxy,
            hindered=setting.hindered,
        )


class Unified:
    """An exchange through ccxt."""

    traits, trade_history = TRAITS, False

    def __init__(self, exchange: str, *, ws_url: str | None, rest_url: str | None, proxy: str | None) -> None:
        """Set up.

        Raises:
            RequestRefused: ccxt has no such exchange, or cannot do with it what is needed.

        """
        self._pattern = build(exchange, pro=True, ws_url=ws_url, rest_url=rest_url)
        need(self._pattern, exchange, "watchTrades", "fetchOHLCV", "fetchTime")
        self._client = CcxtClient(exchange, ws_url=ws_url, rest_url=rest_url, proxy=proxy)

    def has_kline(self, spec: CandleSpec) -> bool:
        """Tell whether the exchange has its own candles of `spec`."""
        return timeframe(self._pattern, spec) is not None

    def groups(self, markets: Sequence[Market], specs: Sequence[CandleSpec]) -> list[list[Market]]:  # noqa: ARG002
        """Give each market a feed of its own; ccxt lets them share connections."""
        return [[market] for market in markets]

    def feed(self, markets: Sequence[Market], specs: Sequence[CandleSpec], setting: Setting) -> Feed:
        """Make the feed of one market."""
        (market,) = markets
        return CcxtFeed(
            self._client, market, list(specs), sink=setting.sink, now_ns=setting.now_ns, rng=setting.rng,
            log=setting.log, hindered=setting.hindered,
        )  # fmt: skip


def kind_of(exchange: str, *, ws_url: str | None = None, rest_url: str | None = None, proxy: str | None = None) -> Kind:
    """Return what listens to `exchange`.

    Raises:
        RequestRefused: nothing does; the text says what is near.

    """
    if exchange.startswith(PREFIX):
        return Unified(exchange, ws_url=ws_url, rest_url=rest_url, proxy=proxy)
    if exchange not in CODECS:
        raise RequestRefused(f"{exchange} is not served by this version; {', '.join(sorted(CODECS))} is, or ccxt:<id>")
    return Spoken(CODECS[exchange], ws_url=ws_url, proxy=proxy)


def _same(markets: Sequence[Market], specs: Sequence[CandleSpec]) -> Mapping[str, Sequence[CandleSpec]]:
    return {market.symbol: specs for market in markets}
