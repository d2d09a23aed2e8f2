"""What every exchange codec must pass: subclass `CodecContract` beside the codec's own tests."""

import abc
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feeds.events import Ack, Event, Kline, Malformed, MarketTrade, MarkPrice, Refusal, Reply, Subscriptions
from feeds.exchanges.base import MAX_FRAME_BYTES, Codec

KINDS = {"json", "encoding", "size", "type", "value", "symbol"}
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1.5, 1e400, 10**30, "", " ", "0", "-1", "+1", "1e5", "NaN", "Infinity", "1_0", "0x1", "١",
    "1.", ".5", "1.2.3", "9" * 5000, "0.00000000000000000000001", [], [1], {}, {"e": []}, "\x00",
]  # fmt: skip
FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors],  # one suite, a class per exchange
)


def answers(event: Event) -> bool:
    return isinstance(event, Ack | Refusal | Subscriptions)


def check_sane(events: list[Event], codec: Codec) -> None:
    assert not any(answers(event) for event in events[:-1])
    for event in events:
        match event:
            case MarketTrade():
                trade = event.trade
                assert event.market in codec.markets
                assert min(trade.price, trade.size, trade.fills) > 0
                assert trade.id >= 0
                assert 0 < trade.event_time_ns < 1 << 62
            case Kline():
                candle = event.candle
                assert event.market in codec.markets
                # An open that is the close before it may lie anywhere, unless the exchange counts it for the range.
                is_free = codec.traits.opens_at_previous_close and not codec.traits.open_in_range
                inside = (candle.close,) if is_free else (candle.open, candle.close)
                assert 0 < candle.low <= min(inside) <= max(inside) <= candle.high < math.inf
                assert 0 < candle.open < math.inf
                assert 0 <= candle.volume < math.inf
                assert candle.trades >= 0
                assert candle.seq * event.spec.interval_ns == candle.close_time_ns
            case MarkPrice():
                assert event.market in codec.markets
                assert 0 < event.mark_price < math.inf
                assert event.index_price is None or 0 < event.index_price < math.inf
                assert event.funding_rate is None or math.isfinite(event.funding_rate)
            case Malformed():
                assert event.kind in KINDS
                assert len(event.detail) <= 200


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(node, dict | list) and node:
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(child, (*path, key))
    else:
        yield path


def replaced(frame: str, path: tuple[Any, ...], value: object) -> str:
    if not path:
        return json.dumps(value)
    node = body = json.loads(frame)
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return json.dumps(body)


def with_news(node: Any) -> Any:
    """Add a field that nobody knows to every object."""
    if isinstance(node, dict):
        return {"zz": {"e": 1, "p": None}, **{k: with_news(v) for k, v in node.items()}, "Zz": [1, "x"]}
    return [with_news(v) for v in node] if isinstance(node, list) else node


class CodecContract(abc.ABC):
    @abc.abstractmethod
    def codec(self) -> Codec:
        """The codec of one market with 1m klines."""

    @abc.abstractmethod
    def frames(self) -> list[str]:
        """Pushes of `codec`'s streams, each of which yields at least one market event."""

    @abc.abstractmethod
    def stranger(self) -> Codec:
        """A codec that did not ask for what is in `frames`."""

    def written(self, name: str) -> str:
        """How a request names a stream."""
        return json.dumps(name)

    def test_good_frames_are_understood_as_text_and_as_bytes(self) -> None:
        codec = self.codec()
        for frame in self.frames():
            events = codec.decode(frame, 5)
            assert events
            assert not any(answers(e) or isinstance(e, Malformed) for e in events)
            check_sane(events, codec)
            assert codec.decode(frame.encode(), 5) == events

    def test_what_was_not_asked_for_is_left_out(self) -> None:
        assert all(self.stranger().decode(frame, 5) == [] for frame in self.frames())

    def test_unknown_fields_and_odd_whitespace_change_nothing(self) -> None:
        codec = self.codec()
        for frame in self.frames():
            body, expected = json.loads(frame), codec.decode(frame, 5)
            assert codec.decode(json.dumps(with_news(body)), 5) == expected
            assert codec.decode(json.dumps(body, indent="\t ", separators=(" ,\r\n", "  : ")) + "\n ", 5) == expected

    def test_truncated_frames_yield_nothing_but_malformed(self) -> None:
        codec = self.codec()
        for frame in self.frames():
            for end in range(len(frame)):
                events = codec.decode(frame[:end].encode(), 5)
                assert [type(e) for e in events] == [Malformed], frame[:end]

    def test_bytes_that_are_no_text_are_malformed_wherever_they_stand(self) -> None:
        codec = self.codec()
        for frame in self.frames():
            raw = frame.encode()
            for at in range(len(raw)):
                for broken in (raw[:at] + b"\xff" + raw[at:], raw[:at] + b"\xc3" + raw[at + 1 :]):
                    assert [type(e) for e in codec.decode(broken, 5)] == [Malformed], broken
        assert [e.kind for e in codec.decode("\ud800", 5) if isinstance(e, Malformed)] == ["encoding"]

    def test_oversized_frames_are_malformed(self) -> None:
        codec = self.codec()
        for frame in self.frames():
            padded = frame + " " * (MAX_FRAME_BYTES - len(frame))
            assert codec.decode(padded, 5) == codec.decode(frame, 5)
            assert [e.kind for e in codec.decode(padded + " ", 5) if isinstance(e, Malformed)] == ["size"]

    @pytest.mark.parametrize("nest", ["[", '{"a":', '{"data":', '{"stream":"x","data":'])
    def test_deep_nesting_is_malformed(self, nest: str) -> None:
        assert [type(e) for e in self.codec().decode(nest * 100_000, 5)] == [Malformed]

    def test_odd_values_in_any_place_never_raise_nor_give_an_insane_event(self) -> None:
        codec = self.codec()
        for frame in self.frames():
            for path in leaves(json.loads(frame)):
                for depth in range(len(path) + 1):
                    for value in ODD_VALUES:
                        check_sane(codec.decode(replaced(frame, path[:depth], value), 5), codec)

    @FUZZ
    @given(junk=st.binary() | st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
    def test_junk_never_raises_nor_becomes_a_market_event(self, junk: str | bytes) -> None:
        events = self.codec().decode(junk, 5)
        assert all(isinstance(event, Malformed | Reply) or answers(event) for event in events)

    @FUZZ
    @given(data=st.data())
    def test_damaged_frames_never_raise_nor_give_an_insane_event(self, data: st.DataObject) -> None:
        codec = self.codec()
        raw = bytearray(data.draw(st.sampled_from(self.frames())).encode())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(raw) - 1))
            raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        check_sane(codec.decode(bytes(raw), 5), codec)

    def test_requests_name_every_stream_once_with_ids_of_their_own(self) -> None:
        codec = self.codec()
        requests = codec.subscribe()
        text = "\n".join(frame for _, frame in requests)
        assert codec.streams
        assert all(text.count(self.written(name)) == 1 for name in codec.streams)
        confirm = codec.confirm()
        ids = [number for number, _ in [*requests, *([confirm] if confirm else [])]]
        assert len(set(ids)) == len(ids)

    def test_a_base_address_replaces_all_but_the_path(self) -> None:
        codec = self.codec()
        path = codec.url().split("/", 3)[3]
        assert codec.url().startswith("wss://")
        assert codec.url("ws://127.0.0.1:9000") == codec.url("ws://127.0.0.1:9000/") == f"ws://127.0.0.1:9000/{path}"
        for bad in ("http://x", "127.0.0.1:9000", "ws://", "ws://x/path", "ws://x?y=1"):
            with pytest.raises(ValueError, match="form"):
                codec.url(bad)

    def test_limits_leave_room(self) -> None:
        codec = self.codec()
        assert codec.request_spacing_s * codec.inbound_rate_per_s >= 2, "pongs and pings count too"
        assert min(codec.silence_s, codec.mark_silence_s, codec.lifetime_s) > 0
        assert codec.traits.grace_ns >= 0
        assert 0 < codec.load <= codec.capacity
