"""What every exchange that the emulator can be must do."""

import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feeds.emulator.clock import VirtualClock
from feeds.emulator.dialects import DIALECTS
from feeds.emulator.dialects.base import Close, Dialect, Ping, Pong, Refused
from feeds.emulator.venue import Venue
from tests.feeds.emulators import START_MS, HandClock, invented, joined, running

every_dialect = pytest.mark.parametrize("name", sorted(DIALECTS))


def dialect(name: str) -> Dialect:
    natives = DIALECTS[name].natives[:1]
    return DIALECTS[name](Venue(VirtualClock(START_MS * 1_000_000), {native: invented(native) for native in natives}))


def paths(name: str) -> list[str]:
    return [re.sub(r"\{[^}]*\}", "x", path) for path in DIALECTS[name].ws_paths]


@every_dialect
def test_it_has_its_name_markets_and_limits(name: str) -> None:
    kind = DIALECTS[name]
    assert kind.name == name
    assert len(kind.natives) >= 2
    assert kind.inbound_per_s > 1
    assert kind.lifetime_s > 3600
    assert kind.rest_prefix.startswith("/")
    assert kind.rest_prefix.endswith("/")


@every_dialect
def test_requests_that_it_does_not_know_or_that_are_too_many_are_refused(name: str) -> None:
    exchange = dialect(name)
    with pytest.raises(Refused) as refused:
        exchange.rest("no/such/path", {})
    for one in (refused.value, exchange.limited(5, banned=False), exchange.limited(5, banned=True)):
        assert one.status == 200 or 400 <= one.status < 500
        assert msgspec.json.encode(one.body) not in (b"null", b"{}", b"[]")


ODD = st.one_of(
    st.text(max_size=80),
    st.sampled_from(
        ["", "ping", "Ping", "Pong", "pong", "{}", "[]", "null", "1", '"x"', '{"op":1}', '{"args":[null]}']
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["op", "args", "method", "params", "id", "reqType", "dataType", "req_id"]), inner
            )
        ),
        max_leaves=8,
    ).map(lambda value: msgspec.json.encode(value).decode()),
)


@every_dialect
@given(texts=st.lists(ODD, max_size=5))
@settings(deadline=None, max_examples=60)
def test_whatever_a_client_says_is_answered_in_frames(name: str, texts: list[str]) -> None:
    exchange = dialect(name)
    for path in paths(name):
        wire = exchange.connect(path, {}, 0.0)
        frames = wire.hello() + wire.due(START_MS + 1)
        for second, text in enumerate(texts):
            frames += wire.answer(text, float(second)) + wire.idle(float(second))
        wire.pong(9.0)
        assert all(isinstance(frame, str | bytes | Close | Ping | Pong) for frame in frames)


@every_dialect
async def test_its_paths_are_served(name: str) -> None:
    async with running(HandClock(), DIALECTS[name].natives, exchange=name) as (emulator, port):
        for path in paths(name):
            async with joined(port, path) as socket:
                await (await socket.ping())
        assert emulator.venue.requests["websocket"] == len(paths(name))
