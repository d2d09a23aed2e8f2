"""The live step of an ensemble of LSTMs: one pass over packed weights, equal to the bit for any batch.

Units lie in vectors of 16 float32, their four gates in four vectors. For each gate the sum runs over the inputs in
order, bias first, then the features or the layer below, then the hidden state, one explicit fused multiply-add each;
nothing else decides a result, so the number of markets in a call, their order and a peek instead of a step cannot
change a bit. (A general matrix product blocks its sums by the batch.) Markets that share one reading of the weights
keep their sums apart.

A *tile* is what one pass over the rows of weights computes. A market alone takes 32 units at once: their eight sums
hide how long a multiply-add takes, and the weights come as fast as the cache gives them. What remains of a layer is a
tile of 16, or a few times 4 whose gates share one vector; such a 4 rides along with a tile of 32 where there is one.
Several markets take 16 units at once, as their own sums hide the time.

The vector code is emitted through numba as LLVM IR and runs on any CPU that LLVM knows: wide registers are used where
they exist, and the result does not depend on their width. A CPU without fused multiply-add emulates it, slowly.

exp(v) is 2ⁿ · E(v − n · ln 2), E a polynomial fit of ours on |r| ≤ ln 2 / 2. The logistic function is 1/(1 + exp(−x)).
tanh(x) is 1 − 2/(1 + exp(2|x|)) with the sign of x, and below 0.55 x + x³·T(x²), T a fit of ours too. Each lies within
the last two bits of the truth. An open forget gate repeats its error at every candle of a quiet market, so they matter.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from inference.kernels.jit import jit

LANES: Final = 16
GROUP: Final = 6
"""Markets that share one reading of the weights: 24 sums, 4 weights and an input fill 32 registers."""
PAIR: Final = 2
WIDE: Final = 2 * LANES
NARROW: Final = LANES // 4
BROAD: Final = WIDE + NARROW

_T: Final = (-0.3333331943, 0.1333263218, -0.05385666341, 0.02108818479, -0.006296012085)
_NEAR: Final = 0.55**2
_E: Final = (1.0, 1.0, 0.4999999106, 0.1666642129, 0.04166835919, 0.008374779485, 0.001382940914)
_EXPONENT: Final = 80.0
"""Bound of exp's argument; the logistic function is 0 or 1 in float32 long before."""
_LOG2_E: Final = 1.4426950408889634
_LN2_HIGH: Final = 0.693359375  # few bits: its product with a small whole number is exact
_LN2_LOW: Final = -2.12194440e-4
_ROUND: Final = 12582912.0  # 1.5 · 2²³: adding it leaves the nearest whole number in the lowest bits

_FLOAT = ir.FloatType()
_INDEX = ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_BITS = ir.VectorType(ir.IntType(32), LANES)
_Sums = list[list[ir.Value]]
_F32 = NDArray[np.float32]
_Frame = tuple[int, int, int, int, int, int, int, int, int]
_Place = tuple[int, int, int]


class _Vectors:
    """Emits arithmetic on vectors of 16 float32 into one function."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.b = builder
        kinds = {"fma": 3, "fabs": 1, "copysign": 2}
        self.calls = {
            name: builder.module.declare_intrinsic(
                f"llvm.{name}.v{LANES}f32", fnty=ir.FunctionType(_VECTOR, [_VECTOR] * arity)
            )
            for name, arity in kinds.items()
        }

    def constant(self, value: float) -> ir.Constant:
        return ir.Constant(_VECTOR, [ir.Constant(_FLOAT, float(np.float32(value)))] * LANES)

    def fma(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        return self.b.call(self.calls["fma"], [x, y, z])

    def load(self, base: ir.Value, at: ir.Value) -> ir.Value:
        pointer = self.b.bitcast(self.b.gep(base, [at]), _VECTOR.as_pointer())
        return self.b.load(pointer, align=4)

    def store(self, value: ir.Value, base: ir.Value, at: ir.Value) -> None:
        self.b.store(value, self.b.bitcast(self.b.gep(base, [at]), _VECTOR.as_pointer()), align=4)

    def spread(self, base: ir.Value, at: ir.Value) -> ir.Value:
        """Load one float into all lanes."""
        nowhere = ir.Constant(_VECTOR, ir.Undefined)
        first = self.b.insert_element(nowhere, self.b.load(self.b.gep(base, [at])), ir.Constant(ir.IntType(32), 0))
        return self.b.shuffle_vector(first, nowhere, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))

    def tanh(self, x: ir.Value) -> ir.Value:
        one, two, z = self.constant(1.0), self.constant(2.0), self.b.fmul(x, x)
        near = self.fma(self.b.fmul(x, z), self._polynomial(z, _T), x)
        grown = self.b.fadd(one, self._exp(self.b.fmul(two, self.b.call(self.calls["fabs"], [x]))))
        far = self.b.call(self.calls["copysign"], [self.b.fsub(one, self.b.fdiv(two, grown)), x])
        return self.b.select(self.b.fcmp_ordered("<", z, self.constant(_NEAR)), near, far)

    def logistic(self, x: ir.Value) -> ir.Value:
        one = self.constant(1.0)
        return self.b.fdiv(one, self.b.fadd(one, self._exp(self.b.fmul(self.constant(-1.0), x))))

    def _exp(self, x: ir.Value) -> ir.Value:
        x = self._within(x, _EXPONENT)
        shifted = self.fma(x, self.constant(_LOG2_E), self.constant(_ROUND))
        whole = self.b.fsub(shifted, self.constant(_ROUND))
        rest = self.fma(whole, self.constant(-_LN2_LOW), self.fma(whole, self.constant(-_LN2_HIGH), x))
        exponent = self.b.shl(self.b.bitcast(shifted, _BITS), ir.Constant(_BITS, [23] * LANES))
        power = self.b.bitcast(self.b.add(exponent, ir.Constant(_BITS, [127 << 23] * LANES)), _VECTOR)
        return self.b.fmul(self._polynomial(rest, _E), power)

    def _within(self, x: ir.Value, bound: float) -> ir.Value:
        low, high = self.constant(-bound), self.constant(bound)
        above = self.b.select(self.b.fcmp_ordered(">", x, low), x, low)
        return self.b.select(self.b.fcmp_ordered("<", above, high), above, high)

    def _polynomial(self, z: ir.Value, coefficients: tuple[float, ...]) -> ir.Value:
        value: ir.Value = self.constant(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            value = self.fma(value, z, self.constant(coefficient))
        return value


class _Segment(NamedTuple):
    """Inputs of a sum: market s has `count` > 0 floats from `base` + s × `stride` on."""

    base: ir.Value
    stride: ir.Value
    count: ir.Value


def _sums(
    v: _Vectors, weights: ir.Value, segments: Sequence[_Segment], *, markets: int, row: ir.Value, ways: Sequence[int]
) -> _Sums:
    """Emit bias + Σ input × row over all segments in order; return [markets][ways] vectors.

    `weights` points at the bias row, followed by one row an input, each of `row` floats, of which the vectors `ways`
    are wanted.
    """
    places = [ir.Constant(_INDEX, LANES * way) for way in ways]
    sums: _Sums = [[v.load(weights, place) for place in places]] * markets
    at = row
    for segment in segments:
        sums, at = _summed(v, weights, segment, sums, at, row, places)
    return sums


def _summed(
    v: _Vectors, weights: ir.Value, segment: _Segment, sums: _Sums, at: ir.Value, row: ir.Value, places: list[ir.Value]
) -> tuple[_Sums, ir.Value]:
    """Emit the loop over one segment, whose rows begin `at`; return the new sums and where the next rows begin."""
    b = v.b
    origins = [b.gep(segment.base, [b.mul(ir.Constant(_INDEX, s), segment.stride)]) for s in range(len(sums))]
    before, loop, after = b.block, b.append_basic_block("rows"), b.append_basic_block("summed")
    b.branch(loop)
    b.position_at_end(loop)
    k, here = b.phi(_INDEX), b.phi(_INDEX)
    running = [[b.phi(_VECTOR) for _ in places] for _ in sums]
    shared = [v.load(weights, b.add(here, place)) for place in places]
    folded = []
    for origin, totals in zip(origins, running, strict=True):
        spread = v.spread(origin, k)
        folded.append([v.fma(spread, weight, total) for weight, total in zip(shared, totals, strict=True)])
    following, beyond = b.add(k, ir.Constant(_INDEX, 1)), b.add(here, row)
    phis = [(k, ir.Constant(_INDEX, 0), following), (here, at, beyond)]
    for market in zip(running, sums, folded, strict=True):
        phis += zip(*market, strict=True)
    for phi, first, then in phis:
        phi.add_incoming(first, before)
        phi.add_incoming(then, loop)
    b.cbranch(b.icmp_signed("<", following, segment.count), loop, after)
    b.position_at_end(after)
    return folded, beyond


def _gates(v: _Vectors, sums: list[ir.Value]) -> _Sums:
    """Return the vectors of the four gates for each 16 units of a tile, then for its 4 where it has them."""
    parts, kind = len(sums) // 4, ir.VectorType(ir.IntType(32), LANES)
    gates = [sums[4 * part : 4 * part + 4] for part in range(parts)]
    for shared in sums[4 * parts :]:
        masks = [[gate * NARROW + lane % NARROW for lane in range(LANES)] for gate in range(4)]
        gates.append([v.b.shuffle_vector(shared, shared, ir.Constant(kind, mask)) for mask in masks])
    return gates


def _floats(context: Any, builder: ir.IRBuilder, kind: Any, array: ir.Value, at: ir.Value) -> ir.Value:
    """Point at float `at` of an array in C order."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def _emit_tile(markets: int, ways: int) -> Any:
    def emit(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        kinds, v = signature.args, _Vectors(b)
        packed, start, row, scratch, h, c, frame, unit, in_place, commit = args
        below, pitch, count, state, apart, hidden, cells, fresh, room = (b.extract_value(frame, at) for at in range(9))
        work = _floats(context, b, kinds[3], scratch, unit)
        inputs = [
            _Segment(_floats(context, b, kinds[3], scratch, below), pitch, count),
            _Segment(_floats(context, b, kinds[4], h, state), apart, hidden),
        ]
        weights = _floats(context, b, kinds[0], packed, start)
        sums = _sums(v, weights, inputs, markets=markets, row=row, ways=range(ways))
        kept, aside = _floats(context, b, kinds[5], c, b.add(state, unit)), b.gep(work, [cells])
        source, source_pitch = b.select(in_place, kept, aside), b.select(in_place, apart, room)
        stays = b.and_(in_place, commit)
        target, target_pitch = b.select(stays, kept, aside), b.select(stays, apart, room)
        for s in range(markets):
            market = ir.Constant(_INDEX, s)
            for part, (i, f, g, o) in enumerate(_gates(v, sums[s])):
                place = ir.Constant(_INDEX, part * LANES)
                here = b.add(b.mul(market, room), place)
                read, write = (aside, here), (aside, here)
                if part < ways // 4:
                    read = source, b.add(b.mul(market, source_pitch), place)
                    write = target, b.add(b.mul(market, target_pitch), place)
                cell = v.fma(v.logistic(f), v.load(*read), b.fmul(v.logistic(i), v.tanh(g)))
                v.store(cell, *write)
                v.store(b.fmul(v.logistic(o), v.tanh(cell)), b.gep(work, [fresh]), here)
        return context.get_dummy_value()

    return emit


def _emit_head(markets: int) -> Any:
    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        packed, start, scratch, inputs, stride, count, outputs, width = args
        v = _Vectors(builder)
        weights = _floats(context, builder, signature.args[0], packed, start)
        work = _floats(context, builder, signature.args[2], scratch, ir.Constant(_INDEX, 0))
        hiddens = _Segment(builder.gep(work, [inputs]), stride, count)
        sums = _sums(v, weights, [hiddens], markets=markets, row=ir.Constant(_INDEX, LANES), ways=[0])
        for s, (value,) in enumerate(sums):
            v.store(value, work, builder.add(outputs, builder.mul(ir.Constant(_INDEX, s), width)))
        return context.get_dummy_value()

    return emit


_ARRAY, _STATE = types.Array(types.float32, 1, "C"), types.Array(types.float32, 4, "C")
_FRAME = types.UniTuple(types.intp, 9)  # type: ignore[no-untyped-call]


def _tile_intrinsic(markets: int, ways: int) -> Any:
    @intrinsic
    def tile(typing, packed, start, row, scratch, h, c, frame, unit, in_place, commit):  # type: ignore[no-untyped-def]  # noqa: ARG001
        """Advance the units of a tile: sum gates, fold cells, write hiddens to `scratch`.

        `frame`: in `scratch` where the inputs from below begin, how far those of two markets lie apart, and how many
        there are; in `h` and `c` the same three of the layer's own state; in `scratch` the cells, the new hiddens, and
        how far those of two markets lie apart. If `in_place`, whole vectors of cells are read from `c`, and written
        there if `commit`; all others lie in `scratch`.
        """
        kinds = (_ARRAY, types.intp, types.intp, _ARRAY, _STATE, _STATE, _FRAME, types.intp)
        return types.void(*kinds, types.boolean, types.boolean), _emit_tile(markets, ways)

    return tile


def _head_intrinsic(markets: int) -> Any:
    @intrinsic
    def head(typing, packed, start, scratch, inputs, stride, count, outputs, width):  # type: ignore[no-untyped-def]  # noqa: ARG001
        """Write 16 outputs: bias + Σ hidden × weight."""
        return types.void(_ARRAY, types.intp, _ARRAY, *[types.intp] * 5), _emit_head(markets)

    return head


_wide_one, _broad_one = _tile_intrinsic(1, 8), _tile_intrinsic(1, 9)
_full_one, _full_pair, _full_group = (_tile_intrinsic(markets, 4) for markets in (1, PAIR, GROUP))
_narrow_one, _narrow_pair = (_tile_intrinsic(markets, 1) for markets in (1, PAIR))
_head_one, _head_pair, _head_group = (_head_intrinsic(markets) for markets in (1, PAIR, GROUP))


@jit
def padded(count: int) -> int:
    """Round up to whole vectors."""
    return (count + LANES - 1) // LANES * LANES


@jit
def tile_units(rest: int) -> int:
    """Say how many units the next tile takes where `rest` remain."""
    if rest < WIDE:
        return LANES if rest > 2 * NARROW else NARROW
    return BROAD if 0 < rest % WIDE <= 2 * NARROW else WIDE


@jit
def tiled(hidden: int) -> int:
    """Return how many units all tiles of a layer have."""
    total = 0
    while total < hidden:
        total += tile_units(hidden - total)
    return total


@jit
def scratch_size(hidden: int, features: int, outputs: int) -> int:
    """Return how many floats `run` needs to work in."""
    return GROUP * (padded(features) + 3 * (padded(hidden) + LANES) + padded(outputs))


@jit
def packed_size(members: int, layers: int, hidden: int, features: int, outputs: int) -> int:
    """Return how many floats `pack` makes."""
    rows = (features + hidden + 1) + (layers - 1) * (2 * hidden + 1)
    return padded(2 * features + 1) + members * (rows * 4 * tiled(hidden) + (hidden + 1) * padded(outputs))


def _tiles(weight: _F32, bias: _F32) -> Iterator[_F32]:
    """Yield the tiles of [4H, K] and [4H]: [1 + K, 4 × units], bias first, filled up with zeros."""
    table = np.concatenate([bias[:, None], weight], axis=1).reshape(4, -1, 1 + weight.shape[1])
    table = np.pad(table, ((0, 0), (0, tiled(table.shape[1]) - table.shape[1]), (0, 0))).transpose(2, 0, 1)
    at, hidden = 0, len(bias) // 4
    while at < hidden:
        units = tile_units(hidden - at)
        parts = np.split(table[:, :, at : at + units], range(LANES, units, LANES), axis=2)
        yield np.concatenate([part.reshape(len(table), -1) for part in parts], axis=1)
        at += units


def _columns(weight: _F32, bias: _F32) -> _F32:
    """Reorder [O, K] and [O] to [O / 16, 1 + K, 16], O filled up with zeros."""
    table = np.concatenate([bias[:, None], weight], axis=1)
    table = np.pad(table, ((0, -len(table) % LANES), (0, 0)))
    return table.reshape(-1, LANES, table.shape[1]).transpose(0, 2, 1)


def pack(scale: _F32, first: _F32, deeper: _F32, recurrent: _F32, bias: _F32, head: _F32, head_bias: _F32) -> _F32:
    """Lay weights out in the order `run` reads them: normalisation, then members, in each its layers and its head.

    Args:
        scale: [2F + 1]: means and reciprocal deviations of the raw features, and the bound of a normalised one.
        first: [M, 4H, F], gates in torch's order i, f, g, o.
        deeper: [M, L − 1, 4H, H], input weights of the layers above the first.
        recurrent: [M, L, 4H, H].
        bias: [M, L, 4H], both of torch's biases added.
        head: [M, O, H].
        head_bias: [M, O].

    Returns:
        One contiguous float32 array beginning at a cache line.

    """
    parts = [np.pad(scale, (0, -len(scale) % LANES))]
    for m in range(len(first)):
        for layer in range(bias.shape[1]):
            below = first[m] if layer == 0 else deeper[m, layer - 1]
            parts += _tiles(np.concatenate([below, recurrent[m, layer]], axis=1), bias[m, layer])
        parts.append(_columns(head[m], head_bias[m]))
    return aligned(np.concatenate([part.ravel() for part in parts]))


def aligned(values: _F32) -> _F32:
    """Copy to a place that begins at a cache line."""
    room = np.empty(len(values) + LANES, np.float32)
    skip = -room.ctypes.data % 64 // 4
    room[skip : skip + len(values)] = values
    return room[skip : skip + len(values)]


@jit
def _tile(
    packed: _F32, start: int, scratch: _F32, h: _F32, c: _F32, frame: _Frame, unit: int, units: int, markets: int,
    commit: bool,
) -> None:  # fmt: skip
    """Advance `units` units of a layer from `unit` on."""
    row, in_place = 4 * units, units >= WIDE
    if markets == 1 and units == WIDE:
        _wide_one(packed, start, row, scratch, h, c, frame, unit, in_place, commit)
        return
    if markets == 1 and units == BROAD:
        _broad_one(packed, start, row, scratch, h, c, frame, unit, in_place, commit)
        return
    narrow = units % LANES
    for offset in range(0, units - narrow, LANES):
        begin, at = start + 4 * offset, unit + offset
        if markets == 1:
            _full_one(packed, begin, row, scratch, h, c, frame, at, in_place, commit)
        elif markets == PAIR:
            _full_pair(packed, begin, row, scratch, h, c, frame, at, in_place, commit)
        else:
            _full_group(packed, begin, row, scratch, h, c, frame, at, in_place, commit)
    if narrow:
        begin, at = start + 4 * (units - narrow), unit + units - narrow
        if markets == 1:
            _narrow_one(packed, begin, row, scratch, h, c, frame, at, False, commit)
        for s in range(0, markets - 1, PAIR):
            below, pitch, count, state, apart, hidden, cells, fresh, room = frame
            pair = (
                below + s * pitch, pitch, count, state + s * apart, apart, hidden, cells + s * room, fresh + s * room,
                room,
            )  # fmt: skip
            _narrow_pair(packed, begin, row, scratch, h, c, pair, at, False, commit)


@jit
def _layer(
    packed: _F32, start: int, scratch: _F32, h: _F32, c: _F32, at: _Place, frame: _Frame, markets: int, commit: bool
) -> int:
    """Advance all tiles of the layer `at` (first market, member, layer); return where the next one's weights start."""
    first, m, layer = at
    hidden, cells, fresh, room = frame[5:]
    unit = 0
    while unit < hidden:
        units = tile_units(hidden - unit)
        aside, beyond = unit + WIDE if units >= WIDE else unit, min(unit + units, hidden)
        for s in range(markets):
            for j in range(aside, beyond):
                scratch[cells + s * room + j] = c[first + s, m, layer, j]
        _tile(packed, start, scratch, h, c, frame, unit, units, markets, commit)
        if commit:
            for s in range(markets):
                for j in range(aside, beyond):
                    c[first + s, m, layer, j] = scratch[cells + s * room + j]
        start += (frame[2] + hidden + 1) * 4 * units
        unit += units
    if commit:
        for s in range(markets):
            for j in range(hidden):
                h[first + s, m, layer, j] = scratch[fresh + s * room + j]
    return start


@jit
def _heads(
    packed: _F32, start: int, scratch: _F32, hiddens: int, room: int, hidden: int, outputs: int, width: int,
    markets: int,
) -> int:  # fmt: skip
    for out in range(0, width, LANES):
        if markets == 1:
            _head_one(packed, start, scratch, hiddens, room, hidden, outputs + out, width)
        elif markets == PAIR:
            _head_pair(packed, start, scratch, hiddens, room, hidden, outputs + out, width)
        else:
            _head_group(packed, start, scratch, hiddens, room, hidden, outputs + out, width)
        start += (hidden + 1) * LANES
    return start


@jit
def _normalise(packed: _F32, x: _F32, first: int, markets: int, scratch: _F32) -> None:
    features = x.shape[1]
    clip = packed[2 * features]
    for s in range(markets):
        for k in range(features):
            value = (np.float32(x[first + s, k]) - packed[k]) * packed[features + k]
            scratch[s * features + k] = min(max(value, -clip), clip)


@jit
def _advance(
    packed: _F32, scratch: _F32, h: _F32, c: _F32, y: _F32, first: int, markets: int, features: int, commit: bool
) -> None:
    """Run `markets` rows of the batch from `first` on through every member."""
    _, members, layers, hidden = h.shape
    room, width, apart = padded(hidden) + LANES, padded(y.shape[2]), members * layers * hidden
    cells = GROUP * padded(features)
    hiddens = cells + GROUP * room
    outputs = hiddens + 2 * GROUP * room
    start = padded(2 * features + 1)
    for m in range(members):
        below, pitch, count, fresh = 0, features, features, hiddens
        for layer in range(layers):
            fresh = hiddens + layer % 2 * GROUP * room
            state = first * apart + (m * layers + layer) * hidden
            frame = (below, pitch, count, state, apart, hidden, cells, fresh, room)
            start = _layer(packed, start, scratch, h, c, (first, m, layer), frame, markets, commit)
            below, pitch, count = fresh, room, hidden
        start = _heads(packed, start, scratch, fresh, room, hidden, outputs, width, markets)
        for s in range(markets):
            for o in range(y.shape[2]):
                y[first + s, m, o] = scratch[outputs + s * width + o]


@jit
def run(packed: _F32, scratch: _F32, x: _F32, h: _F32, c: _F32, y: _F32, commit: bool) -> None:
    """Advance B markets by one candle through all members.

    Args:
        packed: weights as `pack` lays them out.
        scratch: at least `scratch_size` floats, to be overwritten.
        x: [B, F] raw features.
        h: [B, M, L, H] hidden state; overwritten if `commit`.
        c: [B, M, L, H] cell state; overwritten if `commit`.
        y: [B, M, O], receives the heads' raw outputs.
        commit: step (True) or peek (False).

    Raises:
        ValueError: shapes do not belong together.

    """
    batch, features = x.shape
    if h.shape != c.shape or h.shape[0] != batch or y.shape[:2] != h.shape[:2]:
        raise ValueError("features, state and outputs differ in batch or members")
    if len(packed) != packed_size(h.shape[1], h.shape[2], h.shape[3], features, y.shape[2]):
        raise ValueError("features, state or outputs do not have the weights' sizes")
    if len(scratch) < scratch_size(h.shape[3], features, y.shape[2]):
        raise ValueError("too little scratch")
    first = 0
    while first < batch:
        left = batch - first
        markets = GROUP if left >= GROUP else PAIR if left >= PAIR else 1
        _normalise(packed, x, first, markets, scratch)
        _advance(packed, scratch, h, c, y, first, markets, features, commit)
        first += markets
