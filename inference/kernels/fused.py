"""The live step of an ensemble of LSTMs: one pass over packed weights, equal to the bit for any batch.

A *tile* is 16 hidden units: their four gates are four vectors of 16 float32. For a tile the sum runs over the inputs in
order, bias first, one explicit fused multiply-add each; nothing else decides a result, so the number of markets in a
call, their order and a peek instead of a step cannot change a bit. (A general matrix product blocks its sums by the
batch.) Four markets share one reading of the weights; their sums stay apart.

The vector code is emitted through numba as LLVM IR and runs on any CPU that LLVM knows: wide registers are used where
they exist, and the result does not depend on their width. A CPU without fused multiply-add emulates it, slowly.

exp(v) is 2ⁿ · E(v − n · ln 2), E a polynomial fit of ours on |r| ≤ ln 2 / 2. The logistic function is 1/(1 + exp(−x)).
tanh(x) is 1 − 2/(1 + exp(2|x|)) with the sign of x, and below 0.55 x + x³·T(x²), T a fit of ours too. Each lies within
the last two bits of the truth. An open forget gate repeats its error at every candle of a quiet market, so they matter.
"""

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from inference.kernels.jit import jit

LANES: Final = 16
GROUP: Final = 4
"""Markets that share one reading of the weights."""
TILE: Final = 4 * LANES

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
_F32 = NDArray[np.float32]


class _Vectors:
    """Emits arithmetic on vectors of 16 float32 into one function."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.b = builder
        kinds = {"fma": 3, "minnum": 2, "maxnum": 2, "fabs": 1, "copysign": 2}
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
        above = self.b.call(self.calls["maxnum"], [x, self.constant(-bound)])
        return self.b.call(self.calls["minnum"], [above, self.constant(bound)])

    def _polynomial(self, z: ir.Value, coefficients: tuple[float, ...]) -> ir.Value:
        value: ir.Value = self.constant(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            value = self.fma(value, z, self.constant(coefficient))
        return value


def _sums(
    v: _Vectors, weights: ir.Value, inputs: ir.Value, stride: ir.Value, count: ir.Value, *, markets: int, width: int
) -> list[list[ir.Value]]:
    """Emit bias + Σ input × row and return it, [markets][width] vectors.

    `weights` points at the bias row, followed by `count` > 0 rows, each of width × 16 floats; market s reads its inputs
    from s × stride on.
    """
    b = v.b
    step = ir.Constant(_INDEX, width * LANES)
    ways = [ir.Constant(_INDEX, LANES * i) for i in range(width)]
    origins = [b.mul(ir.Constant(_INDEX, s), stride) for s in range(markets)]
    bias = [v.load(weights, way) for way in ways]
    before, loop, after = b.block, b.append_basic_block("rows"), b.append_basic_block("summed")
    b.branch(loop)
    b.position_at_end(loop)
    k, row = b.phi(_INDEX), b.phi(_INDEX)
    sums = [[b.phi(_VECTOR) for _ in ways] for _ in range(markets)]
    row_weights = [v.load(weights, b.add(row, way)) for way in ways]
    spread = [v.spread(inputs, b.add(origin, k)) for origin in origins]
    folded = [[v.fma(spread[s], row_weights[i], sums[s][i]) for i in range(width)] for s in range(markets)]
    following = b.add(k, ir.Constant(_INDEX, 1))
    k.add_incoming(ir.Constant(_INDEX, 0), before)
    k.add_incoming(following, loop)
    row.add_incoming(step, before)
    row.add_incoming(b.add(row, step), loop)
    for s in range(markets):
        for i in range(width):
            sums[s][i].add_incoming(bias[i], before)
            sums[s][i].add_incoming(folded[s][i], loop)
    b.cbranch(b.icmp_signed("<", following, count), loop, after)
    b.position_at_end(after)
    return folded


def _floats(context: Any, builder: ir.IRBuilder, kind: Any, array: ir.Value) -> ir.Value:
    return context.make_array(kind)(context, builder, array).data


def _emit_tile(markets: int) -> Any:
    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        packed, start, scratch, inputs, stride, count, cells, hiddens, units = args
        v = _Vectors(builder)
        weights = builder.gep(_floats(context, builder, signature.args[0], packed), [start])
        floats = _floats(context, builder, signature.args[2], scratch)
        gates = _sums(v, weights, builder.gep(floats, [inputs]), stride, count, markets=markets, width=4)
        for s, (i, f, g, o) in enumerate(gates):
            offset = builder.mul(ir.Constant(_INDEX, s), units)
            cell = v.load(floats, builder.add(cells, offset))
            cell = v.fma(v.logistic(f), cell, builder.fmul(v.logistic(i), v.tanh(g)))
            v.store(cell, floats, builder.add(cells, offset))
            v.store(builder.fmul(v.logistic(o), v.tanh(cell)), floats, builder.add(hiddens, offset))
        return context.get_dummy_value()

    return emit


def _emit_head(markets: int) -> Any:
    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        packed, start, scratch, inputs, stride, count, outputs, width = args
        v = _Vectors(builder)
        weights = builder.gep(_floats(context, builder, signature.args[0], packed), [start])
        floats = _floats(context, builder, signature.args[2], scratch)
        sums = _sums(v, weights, builder.gep(floats, [inputs]), stride, count, markets=markets, width=1)
        for s, (value,) in enumerate(sums):
            v.store(value, floats, builder.add(outputs, builder.mul(ir.Constant(_INDEX, s), width)))
        return context.get_dummy_value()

    return emit


_ARRAY = types.Array(types.float32, 1, "C")


def _tile_intrinsic(markets: int) -> Any:
    @intrinsic
    def tile(typing, packed, start, scratch, inputs, stride, count, cells, hiddens, units):  # type: ignore[no-untyped-def]  # noqa: ARG001
        """Advance 16 units: sum gates over `count` inputs, fold cells, write hiddens, all in `scratch`."""
        return types.void(_ARRAY, types.intp, _ARRAY, *[types.intp] * 6), _emit_tile(markets)

    return tile


def _head_intrinsic(markets: int) -> Any:
    @intrinsic
    def head(typing, packed, start, scratch, inputs, stride, count, outputs, width):  # type: ignore[no-untyped-def]  # noqa: ARG001
        """Write 16 outputs: bias + Σ hidden × weight."""
        return types.void(_ARRAY, types.intp, _ARRAY, *[types.intp] * 5), _emit_head(markets)

    return head


_tile_one, _tile_group = _tile_intrinsic(1), _tile_intrinsic(GROUP)
_head_one, _head_group = _head_intrinsic(1), _head_intrinsic(GROUP)


@jit
def padded(count: int) -> int:
    """Round up to whole vectors."""
    return (count + LANES - 1) // LANES * LANES


@jit
def scratch_size(hidden: int, features: int, outputs: int) -> int:
    """Return how many floats `run` needs to work in."""
    return GROUP * (features + (max(features, hidden) + hidden) + 2 * padded(hidden) + padded(outputs))


@jit
def packed_size(members: int, layers: int, hidden: int, features: int, outputs: int) -> int:
    """Return how many floats `pack` makes."""
    rows = (features + hidden + 1) + (layers - 1) * (2 * hidden + 1)
    return members * (rows * 4 * padded(hidden) + (hidden + 1) * padded(outputs))


def _tiles(weight: _F32, bias: _F32, parts: int) -> _F32:
    """Reorder [parts × N, K] and [parts × N] to tiles [N / 16, 1 + K, parts, 16], N filled up with zeros."""
    table = np.concatenate([bias[:, None], weight], axis=1).reshape(parts, -1, 1 + weight.shape[1])
    table = np.pad(table, ((0, 0), (0, -table.shape[1] % LANES), (0, 0)))
    return table.reshape(parts, -1, LANES, table.shape[2]).transpose(1, 3, 0, 2).ravel()


def pack(first: _F32, deeper: _F32, recurrent: _F32, bias: _F32, head: _F32, head_bias: _F32) -> _F32:
    """Lay weights out in the order `run` reads them: members, in each its layers, then its head.

    Args:
        first: [M, 4H, F], gates in torch's order i, f, g, o.
        deeper: [M, L − 1, 4H, H], input weights of the layers above the first.
        recurrent: [M, L, 4H, H].
        bias: [M, L, 4H], both of torch's biases added.
        head: [M, O, H].
        head_bias: [M, O].

    Returns:
        One contiguous float32 array beginning at a cache line.

    """
    parts = []
    for m in range(len(first)):
        for layer in range(bias.shape[1]):
            below = first[m] if layer == 0 else deeper[m, layer - 1]
            parts.append(_tiles(np.concatenate([below, recurrent[m, layer]], axis=1), bias[m, layer], 4))
        parts.append(_tiles(head[m], head_bias[m], 1))
    return _aligned(np.concatenate(parts))


def _aligned(values: _F32) -> _F32:
    room = np.empty(len(values) + 16, np.float32)
    skip = -room.ctypes.data % 64 // 4
    room[skip : skip + len(values)] = values
    return room[skip : skip + len(values)]


@jit
def _layer(
    packed: _F32, start: int, scratch: _F32, inputs: int, stride: int, count: int, cells: int, units: int, markets: int
) -> int:
    """Advance all tiles of a layer; return where the next layer's weights start."""
    hiddens = cells + GROUP * units
    for unit in range(0, units, LANES):
        if markets == GROUP:
            _tile_group(packed, start, scratch, inputs, stride, count, cells + unit, hiddens + unit, units)
        else:
            _tile_one(packed, start, scratch, inputs, stride, count, cells + unit, hiddens + unit, units)
        start += (count + 1) * TILE
    return start


@jit
def _heads(
    packed: _F32,
    start: int,
    scratch: _F32,
    hiddens: int,
    units: int,
    hidden: int,
    outputs: int,
    width: int,
    markets: int,
) -> int:
    for out in range(0, width, LANES):
        if markets == GROUP:
            _head_group(packed, start, scratch, hiddens, units, hidden, outputs + out, width)
        else:
            _head_one(packed, start, scratch, hiddens, units, hidden, outputs + out, width)
        start += (hidden + 1) * LANES
    return start


@jit
def _normalise(scale: _F32, clip: np.float32, x: _F32, first: int, markets: int, scratch: _F32) -> None:
    features = x.shape[1]
    for s in range(markets):
        for k in range(features):
            value = (np.float32(x[first + s, k]) - scale[0, k]) * scale[1, k]
            scratch[s * features + k] = min(max(value, -clip), clip)


@jit
def _advance(
    packed: _F32, scratch: _F32, h: _F32, c: _F32, y: _F32, first: int, markets: int, features: int, commit: bool
) -> None:
    """Run `markets` rows of the batch from `first` on through every member."""
    _, members, layers, hidden = h.shape
    units, width = padded(hidden), padded(y.shape[2])
    stride = max(features, hidden) + hidden
    inputs = GROUP * features
    cells = inputs + GROUP * stride
    hiddens = cells + GROUP * units
    outputs = hiddens + GROUP * units
    start = 0
    for m in range(members):
        for layer in range(layers):
            below, source, pitch = (features, 0, features) if layer == 0 else (hidden, hiddens, units)
            for s in range(markets):
                u = inputs + s * stride
                for k in range(below):
                    scratch[u + k] = scratch[source + s * pitch + k]
                for j in range(hidden):
                    scratch[u + below + j] = h[first + s, m, layer, j]
                    scratch[cells + s * units + j] = c[first + s, m, layer, j]
            start = _layer(packed, start, scratch, inputs, stride, below + hidden, cells, units, markets)
            if commit:
                for s in range(markets):
                    for j in range(hidden):
                        h[first + s, m, layer, j] = scratch[hiddens + s * units + j]
                        c[first + s, m, layer, j] = scratch[cells + s * units + j]
        start = _heads(packed, start, scratch, hiddens, units, hidden, outputs, width, markets)
        for s in range(markets):
            for o in range(y.shape[2]):
                y[first + s, m, o] = scratch[outputs + s * width + o]


@jit
def run(
    packed: _F32, scale: _F32, clip: np.float32, scratch: _F32, x: _F32, h: _F32, c: _F32, y: _F32, commit: bool
) -> None:
    """Advance B markets by one candle through all members.

    Args:
        packed: weights as `pack` lays them out.
        scale: [2, F]: mean and reciprocal deviation of the raw features.
        clip: bound of a normalised feature.
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
    if features != scale.shape[1] or h.shape != c.shape or h.shape[0] != batch or y.shape[:2] != h.shape[:2]:
        raise ValueError("features, state and outputs differ in batch, members or features")
    if len(packed) != packed_size(h.shape[1], h.shape[2], h.shape[3], features, y.shape[2]):
        raise ValueError("state or outputs do not have the weights' sizes")
    if len(scratch) < scratch_size(h.shape[3], features, y.shape[2]):
        raise ValueError("too little scratch")
    first = 0
    while first < batch:
        markets = GROUP if batch - first >= GROUP else 1
        _normalise(scale, clip, x, first, markets, scratch)
        _advance(packed, scratch, h, c, y, first, markets, features, commit)
        first += markets
