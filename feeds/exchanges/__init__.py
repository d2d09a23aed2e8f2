"""The exchanges whose websocket protocol we speak, by the name that the configuration uses."""

from feeds.exchanges.base import Codec
from feeds.exchanges.binance import BinanceCodec

CODECS: dict[str, type[Codec]] = {BinanceCodec.name: BinanceCodec}
