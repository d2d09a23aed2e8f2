import re
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds.market import NS_PER_DAY, NS_PER_MS, NS_PER_S, Candle, CandleSpec, Market, Origin, SpecKind, slug_of


@pytest.mark.parametrize(
    ("symbol", "slug"),
    [
        ("BTC/USDT:USDT", "BTC-USDT-PERP"),
        ("BTC/USD:BTC", "BTC-USD-INVERSE"),
        ("BTC/USDT:USDT-261225", "BTC-USDT-261225"),
        ("BTC/USD:BTC-261225", "BTC-USD-INVERSE-261225"),
        ("ETH/USD:BTC", "ETH-USD-QUANTO-BTC"),
        ("ETH/USD:BTC-261225", "ETH-USD-QUANTO-BTC-261225"),
        ("1000PEPE/USDT:USDT", "1000PEPE-USDT-PERP"),
        ("A-B/USDT:USDT", "A%2DB-USDT-PERP"),
        ("A+#/USDT:USDT", "A%2B%23-USDT-PERP"),
        ("50%/USDT:USDT", "50%25-USDT-PERP"),
    ],
)
def test_a_symbol_has_a_slug(symbol: str, slug: str) -> None:
    market = Market(exchange="binance", symbol=symbol, native="X", price_decimals=1, size_decimals=1)
    assert market.slug == slug_of(symbol) == slug


@pytest.mark.parametrize(
    "symbol", ["BTC/USDT", "BTCUSDT", "", "BTC/USDT:", "/USDT:USDT", "BTC/USDT:USDT-2612", "BTC/USDT:USDT-٢٦١٢٢٥",
               "A/B/C:C", "BTC/USDT:USDT-261225-100000-C"]
)  # fmt: skip
def test_what_is_no_contract_has_none(symbol: str) -> None:
    with pytest.raises(ValueError, match="unified contract symbol"):
        slug_of(symbol)


names = st.text("AB12-+#%._é币", min_size=1, max_size=4)
symbols = st.builds(
    lambda base, quote, settle, expiry: f"{base}/{quote}:{settle}{expiry}",
    names, names, names.filter(lambda name: "-" not in name), st.sampled_from(["", "-261225", "-270101"]),
)  # fmt: skip


@given(symbols, symbols)
def test_slugs_are_topic_levels_and_one_to_one(one: str, other: str) -> None:
    assert not re.search(r"[/+#\s]", slug_of(one))
    assert (slug_of(one) == slug_of(other)) == (one == other)


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("1s", SpecKind.TIME, NS_PER_S), ("5s", SpecKind.TIME, 5 * NS_PER_S), ("0.5s", SpecKind.TIME, NS_PER_S // 2),
        ("1m", SpecKind.TIME, 60 * NS_PER_S), ("4h", SpecKind.TIME, 4 * 3600 * NS_PER_S),
        ("1d", SpecKind.TIME, NS_PER_DAY), ("100t", SpecKind.TRADES, 100), ("50v", SpecKind.VOLUME, 50),
        ("0.5v", SpecKind.VOLUME, Decimal("0.5")), ("1000000$", SpecKind.VALUE, 1_000_000),
    ],
)  # fmt: skip
def test_a_spec_is_read(text: str, kind: SpecKind, amount: Decimal | int) -> None:
    spec = CandleSpec.parse(text)
    assert (spec.kind, spec.amount, str(spec), spec.by_time) == (kind, amount, text, kind is SpecKind.TIME)
    assert spec.interval_ns == (amount if spec.by_time else 0)


@pytest.mark.parametrize(
    "text", ["", "1", "m", "1 m", "-1m", "0m", "0t", "0.5t", "1e3t", "7m", "2d", "25h", "1w", "1M", "٣s", "1.m", ".5s",
             "0.0000000001s", "0.00001s", "1m\n"]
)  # fmt: skip
def test_what_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        CandleSpec.parse(text)


@given(st.sampled_from(["1s", "5s", "1m", "1h", "1d"]).map(CandleSpec.parse), st.integers(NS_PER_DAY, 2**62))
def test_every_time_lies_in_the_interval_after_the_newest_closed_one(spec: CandleSpec, time_ns: int) -> None:
    open_ns = spec.open_of(time_ns)
    assert open_ns <= time_ns < open_ns + spec.interval_ns
    assert spec.seq_at(time_ns) * spec.interval_ns == open_ns
    assert NS_PER_DAY % spec.interval_ns == 0, "so that every day begins with a candle"


def test_candles_are_the_same_if_their_prices_and_volume_are() -> None:
    candle = Candle(
        seq=5, open_time_ns=4 * NS_PER_MS, close_time_ns=5 * NS_PER_MS, open=1.0, high=2.0, low=0.5, close=1.5,
        volume=3.0, trades=2, closed=True, origin=Origin.TRADES,
    )  # fmt: skip
    assert candle.same_figures(msgspec.structs.replace(candle, origin=Origin.EXCHANGE, trades=9))
    for field in ("seq", "open_time_ns", "open", "high", "low", "close", "volume"):
        assert not candle.same_figures(msgspec.structs.replace(candle, **{field: getattr(candle, field) + 1}))
