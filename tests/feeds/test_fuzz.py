"""Damaged frames without end: nothing leaves a codec but events, and memory stays where it was.

`FUZZ_FRAMES` says how many a codec; `make fuzz` gives each 200,000. A failure prints seed and number, which repeat it.
"""

import importlib
import json
import os
import random
import tracemalloc
from collections import Counter
from typing import Any

import pytest

from feeds.exchanges import CODECS
from feeds.exchanges.base import Codec
from tests.feeds.exchange_contract import ODD_VALUES, CodecContract, check_sane, leaves, replaced

FRAMES = int(os.environ.get("FUZZ_FRAMES", "3000"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
GROWTH_MAX_BYTES = 256 * 1024


def contract_of(exchange: str) -> CodecContract:
    made: CodecContract = importlib.import_module(f"tests.feeds.test_{exchange}").TestContract()
    return made


def as_object(frame: str, rng: random.Random) -> str:
    """Put an odd value in a random place, or drop or repeat a field."""
    path = rng.choice(list(leaves(json.loads(frame))))
    return replaced(frame, path[: rng.randint(0, len(path))], rng.choice(ODD_VALUES))


def as_bytes(frame: str, rng: random.Random, other: str) -> bytes:
    """Overwrite, cut, insert, or splice two frames."""
    raw, donor = bytearray(frame.encode()), other.encode()
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(raw) + 1)
        length = rng.choice((0, 1, 1, 2, 4, 16))
        begin = rng.randrange(len(donor))
        patch = rng.choice((rng.randbytes(length), donor[begin : begin + 4 * length], raw[at : at + length] * 2))
        raw[at : at + rng.choice((0, length))] = patch
    return bytes(raw)


def mutated(frames: list[str], rng: random.Random) -> str | bytes:
    frame = rng.choice(frames)
    if not frame.startswith(("{", "[")) or rng.random() < 0.5:
        return as_bytes(frame, rng, rng.choice(frames))
    return as_object(frame, rng)


def feed(codec: Codec, frames: list[str], *, begin: int, count: int) -> Counter[str]:
    """Decode frames, each from a seed of its own, and say what came of them."""
    told: Counter[str] = Counter()
    for number in range(begin, begin + count):
        frame = mutated(frames, random.Random(f"{SEED}/{number}"))
        try:
            events = codec.decode(frame, 5)
            check_sane(events, codec)
        except Exception as error:
            raise AssertionError(f"{codec.name}: FUZZ_SEED={SEED}, frame {number}: {frame[:500]!r}") from error
        told.update(type(event).__name__ for event in events)
    return told


@pytest.mark.parametrize("exchange", CODECS)
def test_nothing_but_events_leaves_a_codec_and_memory_is_flat(exchange: str) -> None:
    contract: Any = contract_of(exchange)
    codec, frames = contract.codec(), contract.frames()
    told = feed(codec, frames, begin=0, count=FRAMES // 2)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        told += feed(codec, frames, begin=FRAMES // 2, count=FRAMES - FRAMES // 2)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < GROWTH_MAX_BYTES
    assert told["Malformed"] > FRAMES // 20, "the frames are hardly damaged"
    assert sum(told.values()) > told["Malformed"], "no frame survives, so little is tried"
