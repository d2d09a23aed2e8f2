"""The exchanges that the emulator can be, by name."""

from feeds.emulator.dialects.base import Dialect
from feeds.emulator.dialects.binance import Binance
from feeds.emulator.dialects.bingx import Bingx
from feeds.emulator.dialects.bitget import Bitget
from feeds.emulator.dialects.bitmex import Bitmex
from feeds.emulator.dialects.bybit import Bybit

DIALECTS: dict[str, type[Dialect]] = {
    Binance.name: Binance,
    Bingx.name: Bingx,
    Bitget.name: Bitget,
    Bitmex.name: Bitmex,
    Bybit.name: Bybit,
}
