"""Everything that a market's next signal depends on, in one place that can be written down and read back.

A `Fold` is the state after folding a market's candles from a defined first ordinal on: features, hidden and cell state,
the side held, and a hash chained over the very inputs. Two folds with the same hash are the same to the bit.
"""

import hashlib
import struct
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from feeds.market import Candle
from inference.features import STATE_SIZE, new_state
from inference.signals import Side

_FIGURES = struct.Struct("<q6d")
_HASH_BYTES = 16


class Fold:
    """State of one market's fold, owned and changed by its engine."""

    __slots__ = ("c", "chain", "features", "folded", "h", "seq", "side", "start_seq")

    def __init__(self, start_seq: int, shape: tuple[int, int, int], identity: bytes) -> None:
        """Begin before candle `start_seq`; `shape` is members × layers × hidden size."""
        self.start_seq = start_seq
        self.seq = start_seq - 1
        self.folded = 0
        self.features: NDArray[np.float64] = new_state()
        self.h: NDArray[np.float32] = np.zeros(shape, np.float32)
        self.c: NDArray[np.float32] = np.zeros(shape, np.float32)
        self.side = Side.FLAT
        self.chain = hashlib.blake2b(identity + struct.pack("<q", start_seq), digest_size=_HASH_BYTES).digest()

    @property
    def inputs_hash(self) -> str:
        """Hash over everything folded so far, 32 hex digits."""
        return self.chain.hex()

    def link(self, candle: Candle, funding: float) -> None:
        """Chain a candle's figures, and the funding that was weighed with them."""
        figures = (candle.seq, candle.open, candle.high, candle.low, candle.close, candle.volume, funding)
        self._link(candle.seq, _FIGURES.pack(*figures))

    def link_void(self, seq: int) -> None:
        """Chain the fact that the exchange has no candle `seq`."""
        self._link(seq, b"void" + struct.pack("<q", seq))

    def _link(self, seq: int, inputs: bytes) -> None:
        self.chain = hashlib.blake2b(self.chain + inputs, digest_size=_HASH_BYTES).digest()
        self.seq = seq
        self.folded += 1

    def pack(self) -> dict[str, object]:
        """Write the state down, exactly."""
        return {
            "start_seq": self.start_seq,
            "seq": self.seq,
            "folded": self.folded,
            "features": self.features.tobytes(),
            "h": self.h.tobytes(),
            "c": self.c.tobytes(),
            "side": str(self.side),
            "chain": self.chain,
        }

    @classmethod
    def unpack(cls, raw: dict[str, object], shape: tuple[int, int, int]) -> Self:
        """Read back what `pack` wrote.

        Raises:
            ValueError: it was written for a model or a feature set of another size.

        """
        packed = msgspec.convert(raw, _Packed)
        cells = 4 * int(np.prod(shape))
        if len(packed.features) != 8 * STATE_SIZE or len(packed.h) != cells or len(packed.c) != cells:
            raise ValueError("the snapshot belongs to a model of another size")
        fold = cls(packed.start_seq, shape, b"")
        fold.seq, fold.folded, fold.side, fold.chain = packed.seq, packed.folded, packed.side, packed.chain
        fold.features = np.frombuffer(packed.features, np.float64).copy()
        fold.h = np.frombuffer(packed.h, np.float32).reshape(shape).copy()
        fold.c = np.frombuffer(packed.c, np.float32).reshape(shape).copy()
        return fold


class _Packed(msgspec.Struct):
    start_seq: int
    seq: int
    folded: int
    features: bytes
    h: bytes
    c: bytes
    side: Side
    chain: bytes
