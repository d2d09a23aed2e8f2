import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds.market import Candle, Origin
from inference.features import STATE_SIZE
from inference.signals import Side
from inference.state import Fold

SHAPE = (2, 1, 3)
CANDLE = Candle(
    seq=7, open_time_ns=6, close_time_ns=7, open=1.0, high=4.0, low=0.5, close=2.0, volume=9.0, trades=3, closed=True,
    origin=Origin.TRADES,
)  # fmt: skip


def fold(start: int = 7, identity: bytes = b"binance|BTC/USDT:USDT|1m|") -> Fold:
    return Fold(start, SHAPE, identity)


def linked(candle: Candle, funding: float = 0.0) -> str:
    new = fold()
    new.link(candle, funding)
    return new.inputs_hash


def test_the_hash_names_the_market_the_start_and_every_figure() -> None:
    assert fold().inputs_hash != fold(start=8).inputs_hash != fold(identity=b"binance|ETH/USDT:USDT|1m|").inputs_hash
    known = {fold().inputs_hash, linked(CANDLE), linked(CANDLE, 1e-300)}
    for field in ("seq", "open", "high", "low", "close", "volume"):
        value = getattr(CANDLE, field)
        other = value + 1 if isinstance(value, int) else float(np.nextafter(value, np.inf))
        known.add(linked(msgspec.structs.replace(CANDLE, **{field: other})))
    void = fold()
    void.link_void(7)
    known.add(void.inputs_hash)
    assert len(known) == 3 + 6 + 1
    assert all(len(digest) == 32 for digest in known)


def test_where_a_candle_came_from_does_not_show() -> None:
    assert linked(CANDLE) == linked(msgspec.structs.replace(CANDLE, origin=Origin.REPAIRED, trades=8))


def test_order_shows_and_ordinals_are_counted() -> None:
    one, other = fold(), fold()
    next_one = msgspec.structs.replace(CANDLE, seq=8)
    one.link(CANDLE, 0.0)
    one.link(next_one, 0.0)
    other.link(next_one, 0.0)
    other.link(CANDLE, 0.0)
    assert one.inputs_hash != other.inputs_hash
    assert (one.seq, one.folded, fold().seq, fold().folded) == (8, 2, 6, 0)


@given(st.integers(0, 2**62), st.sampled_from(Side), st.binary(min_size=16, max_size=16), st.integers(0, 2**32 - 1))
def test_what_is_written_down_is_read_back_to_the_bit(seq: int, side: Side, chain: bytes, seed: int) -> None:
    random = np.random.default_rng(seed)
    mine = fold(seq)
    mine.seq, mine.folded, mine.side, mine.chain = seq + 5, 6, side, chain
    mine.features[:] = random.normal(size=STATE_SIZE)
    mine.h[:], mine.c[:] = random.normal(size=SHAPE), random.normal(size=SHAPE)
    packed = msgspec.msgpack.decode(msgspec.msgpack.encode(mine.pack()))
    read = Fold.unpack(packed, SHAPE)
    assert read.pack() == mine.pack()
    assert all(np.array_equal(getattr(read, name), getattr(mine, name)) for name in Fold.__slots__)
    read.h += 1.0
    read.c += 1.0
    read.features += 1.0
    assert read.pack() != mine.pack(), "it is writable and its own"


@pytest.mark.parametrize("shape", [(2, 1, 4), (1, 1, 3), (2, 2, 3)])
def test_another_models_state_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="another size"):
        Fold.unpack(fold().pack(), shape)
    with pytest.raises(ValueError, match="another size"):
        Fold.unpack({**fold().pack(), "features": b""}, SHAPE)
