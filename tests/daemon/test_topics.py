"""The words of the contract: times, topics, identities, and types that refuse what is none of theirs."""

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon import topics
from feeds.market import CandleSpec, Market, Origin
from tests.daemon.lines import BEGIN, MARKET, MINUTE, candle, messages, new_line, offer_all


def signal() -> topics.Signal:
    line = new_line()
    line.begin(newest_seq=BEGIN + 1, stream_seq=None, journal=[])
    offer_all(line, range(line.next_seq, BEGIN + 2))
    (found,) = messages(line.take_work())
    assert isinstance(found, topics.Signal)
    return found


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_729_245_660_000_000_000, "2024-10-18T10:01:00.000Z"),
        (1_729_245_660_999_999_999, "2024-10-18T10:01:00.999Z"),
        (951_782_400_001_000_000, "2000-02-29T00:00:00.001Z"),
    ],
)
def test_times_are_utc_texts_cut_to_milliseconds(time_ns: int, text: str) -> None:
    assert topics.rfc3339(time_ns) == text


def test_topics_name_exchange_market_and_spec() -> None:
    assert topics.market_topic("a/b", MARKET, "availability") == "a/b/binance/BTC-USDT-PERP/availability"
    assert topics.spec_topic("lstmd", MARKET, MINUTE, "signal") == "lstmd/binance/BTC-USDT-PERP/1m/signal"


def test_an_id_changes_with_everything_that_decides_the_bytes() -> None:
    base: dict[str, Any] = {"market": MARKET, "spec": MINUTE, "seq": 7, "model": "m", "policy": "p", "inputs_hash": "h"}
    other = {
        "market": msgspec.structs.replace(MARKET, symbol="ETH/USDT:USDT"), "spec": CandleSpec.parse("5m"), "seq": 8,
        "model": "n", "policy": "q", "inputs_hash": "i",
    }  # fmt: skip
    ids = {topics.signal_id(**base)} | {topics.signal_id(**{**base, key: value}) for key, value in other.items()}
    assert len(ids) == 1 + len(other)
    assert topics.signal_id(**base) == topics.signal_id(**base)


def test_a_gaps_id_tells_its_range() -> None:
    ranges = [(1, 5), (2, 5), (1, 6), (12, 5), (1, 25)]
    assert len({topics.gap_id("binance", "S", "1m", *r, "m", "p") for r in ranges}) == len(ranges)


contexts = st.dictionaries(st.sampled_from(["late", "origin"]), st.booleans())


@given(contexts, st.sampled_from([b"", b'"published_at":"x","boot_id":"y"']))
def test_a_stored_message_and_its_context_are_joined_into_one_object(context: dict[str, bool], stamp: bytes) -> None:
    joined = json.loads(topics.with_context(b'{"id":"1","reasons":["}"]}', json.dumps(context).encode(), stamp))
    stamped = {"published_at": "x", "boot_id": "y"} if stamp else {}
    assert joined == {"id": "1", "reasons": ["}"], "context": {**context, **stamped}}


def test_the_identity_is_every_field_but_the_context() -> None:
    found = signal()
    found.context.late = True
    whole = json.loads(topics.encode(found))
    assert whole.pop("context") == {"late": True}
    assert json.loads(topics.identity_of(found)) == whole
    assert topics.identity_of(found) == topics.identity_of(msgspec.structs.replace(found, context=topics.Context()))


def test_a_signal_survives_its_type_and_carries_finite_figures() -> None:
    found = signal()
    assert msgspec.json.decode(topics.encode(found), type=topics.Signal, strict=True) == found
    assert found.p_short + found.p_flat + found.p_long == pytest.approx(1, abs=3e-6)
    assert all(math.isfinite(v) for v in msgspec.structs.asdict(found).values() if isinstance(v, float))


def test_a_candle_message_says_where_its_figures_come_from() -> None:
    told = topics.candle_message(MARKET, MINUTE, msgspec.structs.replace(candle(7), origin=Origin.REPAIRED))
    again = msgspec.json.decode(topics.encode(told), type=topics.CandleMessage, strict=True)
    assert (again.origin, again.closed) == ("repaired", True)
    assert (again.open_time, again.close_time) == ("1970-01-01T00:06:00.000Z", "1970-01-01T00:07:00.000Z")
    assert (again.open, again.high, again.low, again.close, again.volume) == (
        candle(7).open, candle(7).high, candle(7).low, candle(7).close, candle(7).volume,
    )  # fmt: skip


@pytest.mark.parametrize(
    "payload",
    [b'{"from_seq":-1}', b'{"from_seq":99999999999999999999}', b'{"from_seq":"1"}', b'{"transaction":1.5}', b"[]"],
)
def test_requests_that_make_no_sense_are_refused_by_their_type(payload: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(payload, type=topics.Request)


def test_there_is_a_schema_of_every_payload() -> None:
    schemas = topics.json_schemas()
    assert {"Signal", "Void", "Live", "Status", "Availability", "Health", "Request", "HummingbotSignal"} <= set(schemas)
    assert "context" in schemas["Signal"]["$defs"]["Signal"]["required"]


def test_markets_with_odd_names_stay_on_one_level() -> None:
    odd = Market(exchange="binance", symbol="币+#/USDT:USDT", native="x", price_decimals=1, size_decimals=1)
    assert topics.market_topic("lstmd", odd, "availability").count("/") == 3
    assert not set("+#") & set(topics.market_topic("lstmd", odd, "availability"))
