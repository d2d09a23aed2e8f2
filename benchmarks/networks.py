"""The same network for every contestant: our weights, torch's modules, and an ONNX graph made from them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from benchmarks import harness
from benchmarks.harness import Row
from inference.kernels import reference
from inference.lstm import F32, Weights

Call = Callable[[], object]
FIRST_TO_ONNX = (0, 3, 1, 2)
"""torch's gates i, f, g, o in the order of ONNX: i, o, f, c."""


def weights_of(*, inputs: int, layers: int, hidden: int, outputs: int = 3, members: int = 1) -> Weights:
    """Make random weights that normalise nothing: their values do not decide the time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = [(nn.LSTM(inputs, hidden, layers), nn.Linear(hidden, outputs)) for _ in range(members)]
    none, one = np.zeros(inputs, np.float32), np.ones(inputs, np.float32)
    return reference.from_torch(models, mean=none, inv_std=one, clip=5.0)


def noise(*shape: int) -> F32:
    """Return inputs."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def often(call: Call, turn_s: float = 0.003) -> int:
    """Return how many calls fill a turn: each contestant's caches are then as warm as another's."""
    call()
    began = time.perf_counter()
    call()
    return 1 + int(turn_s / (time.perf_counter() - began))


def beside(key: str, what: str, taken: Mapping[str, Sequence[float]], name: str, said: str, reach: float | None) -> Row:
    """Set "ours" beside the fastest variant of a contestant; variants are called name/…, times are seconds a round.

    The ratio is the median over rounds of neighbours in time, which a burst of another process's work hardly moves.
    """
    ratios = {variant: harness.ratio(taken, "ours", variant) for variant in taken if variant.partition("/")[0] == name}
    best = min(ratios, key=ratios.__getitem__)
    mine, other = (1e6 * statistics.median(taken[contestant]) for contestant in ("ours", best))
    return Row(key=key, what=what, ours=mine, other=other, beside=said, unit="µs", ratio=ratios[best], reach=reach)


def torchs(weights: Weights, *, steps: int, batch: int, threads: int = 1) -> Call:
    """One pass of the first member over `steps` candles of `batch` markets, from a given state."""
    rnn, head = reference.to_torch(weights)[0]
    x, state = (
        torch.from_numpy(noise(batch, steps, weights.features)),
        torch.zeros(weights.layers, batch, weights.hidden),
    )

    def run() -> object:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return head(rnn(x, (state, state))[0][:, -1])

    return run


def onnx_graph(weights: Weights, *, carried: bool) -> bytes:
    """Export the first member, time first; `carried`: h and c go in and out, otherwise they begin at zero."""
    order = [gate * weights.hidden + np.arange(weights.hidden) for gate in FIRST_TO_ONNX]
    rows = np.concatenate(order)
    nodes, constants, below = [], {"axis": np.array([1]), "first": np.array([0])}, "x"
    states = [(f"h{n}", f"c{n}", f"h{n}_next", f"c{n}_next") for n in range(weights.layers)]
    for n, (h, c, h_next, c_next) in enumerate(states):
        constants[f"W{n}"] = (weights.first[0] if n == 0 else weights.deeper[0, n - 1])[None, rows]
        constants[f"R{n}"] = weights.recurrent[0, n][None, rows]
        bias = weights.bias[0, n][rows]
        constants[f"B{n}"] = np.concatenate([bias, np.zeros_like(bias)])[None]
        given = [below, f"W{n}", f"R{n}", f"B{n}", *(("", h, c) if carried else ())]
        nodes += [
            helper.make_node("LSTM", given, [f"all{n}", h_next, c_next], hidden_size=weights.hidden),
            helper.make_node("Squeeze", [f"all{n}", "axis"], [f"above{n}"]),
        ]
        below = f"above{n}"
    constants |= {"head": weights.head[0].T, "head_bias": weights.head_bias[0]}
    nodes += [
        helper.make_node("Squeeze", [states[-1][2], "first"], ["last"]),
        helper.make_node("Gemm", ["last", "head", "head_bias"], ["y"]),
    ]
    before, after = ([name for four in states for name in four[at : at + 2]] for at in (0, 2))

    def values(names: list[str]) -> list[onnx.ValueInfoProto]:
        shape = [1, "batch", weights.hidden]
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names if carried]

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["steps", "batch", weights.features])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", weights.outputs])
    initial = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "lstm", [x, *values(before)], [y, *values(after)], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def onnxs(weights: Weights, *, steps: int, batch: int, carried: bool, threads: int, bound: bool = False) -> Call:
    """One run of onnxruntime; `threads` 0 leaves their number to it, `bound` binds all arrays beforehand."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(onnx_graph(weights, carried=carried), options, ["CPUExecutionProvider"])
    feed = {"x": noise(steps, batch, weights.features)}
    feed |= {given.name: np.zeros((1, batch, weights.hidden), np.float32) for given in session.get_inputs()[1:]}
    if not bound:
        return lambda: session.run(None, feed)
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for made in session.get_outputs():
        shape = (batch, weights.outputs) if made.name == "y" else (1, batch, weights.hidden)
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
        binding.bind_ortvalue_output(made.name, value)
    return lambda: session.run_with_iobinding(binding)
