"""What the exchanges remember, by the name that the configuration uses."""

from collections.abc import Callable

from feeds.budget import Budget
from feeds.errors import RequestRefused
from feeds.history.base import PAGE_ROWS, History
from feeds.history.binance import BinanceHistory
from feeds.history.bingx import BingxHistory
from feeds.history.bitget import BitgetHistory
from feeds.history.bitmex import BitmexHistory
from feeds.history.bybit import BybitHistory
from feeds.history.ccxt import PREFIX, CcxtHistory

__all__ = ["HISTORIES", "PAGE_ROWS", "History", "open_history"]

HISTORIES: dict[str, Callable[[str | None], History]] = {
    BinanceHistory.exchange: BinanceHistory,
    BingxHistory.exchange: BingxHistory,
    BitgetHistory.exchange: BitgetHistory,
    BitmexHistory.exchange: BitmexHistory,
    BybitHistory.exchange: BybitHistory,
}


def open_history(
    exchange: str, rest_url: str | None = None, budget: Budget | None = None, proxy: str | None = None
) -> History:
    """Build the history of `exchange`; `rest_url` replaces scheme, host and port of its address.

    Requests pass by `budget`, where there is one, and through `proxy`, whatever the environment says of proxies.

    Raises:
        RequestRefused: no history is known for this exchange, `rest_url` is not an http address, or it is not given and
            the exchange itself is closed.

    """
    if exchange.startswith(PREFIX):
        history: History = CcxtHistory(exchange, rest_url)
    elif exchange in HISTORIES:
        history = HISTORIES[exchange](rest_url)
    else:
        known = ", ".join(sorted(HISTORIES))
        raise RequestRefused(f"no history is known for the exchange {exchange!r}; known: {known}")
    if budget:
        history.join(budget)
    if proxy:
        history.route(proxy)
    return history
