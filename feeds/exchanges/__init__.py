"""The exchanges whose websocket protocol we speak, by the name that the configuration uses."""

from collections.abc import Mapping, Sequence

from feeds.exchanges.base import Codec
from feeds.exchanges.binance import BinanceCodec
from feeds.exchanges.bingx import BingxCodec
from feeds.exchanges.bitget import BitgetCodec
from feeds.exchanges.bitmex import CLOSED as BITMEX_CLOSED
from feeds.exchanges.bitmex import BitmexCodec
from feeds.exchanges.bybit import BybitCodec
from feeds.market import CandleSpec, Market
from feeds.subscription import plan

CODECS: dict[str, type[Codec]] = {
    BinanceCodec.name: BinanceCodec,
    BingxCodec.name: BingxCodec,
    BitgetCodec.name: BitgetCodec,
    BitmexCodec.name: BitmexCodec,
    BybitCodec.name: BybitCodec,
}
CLOSED: dict[str, str] = {BitmexCodec.name: BITMEX_CLOSED}
"""Exchanges that are no more, and what to say of them: their protocol is spoken with other servers only."""


def groups_of(
    kind: type[Codec], markets: Sequence[Market], specs: Mapping[str, Sequence[CandleSpec]]
) -> list[list[Market]]:
    """Spread markets over as few connections as the exchange's limit allows, with head-room; families apart."""
    by_symbol = {market.symbol: market for market in markets}
    families: dict[str, dict[str, int]] = {}
    for market in markets:
        families.setdefault(kind.family(market), {})[market.symbol] = kind([market], specs).load
    groups = (group for loads in families.values() for group in plan(loads, capacity=kind.capacity))
    return [[by_symbol[symbol] for symbol in group] for group in groups]
