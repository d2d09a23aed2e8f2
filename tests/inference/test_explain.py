import numpy as np
import torch

from inference import lstm
from inference.explain import explain, half_life, mean_forget
from inference.kernels import reference
from tests.inference.ensembles import ensemble


def test_gates_equal_torchs() -> None:
    """Member by member and layer by layer against torch's own sums, and the cell against `torch.nn.LSTM`."""
    weights = ensemble(layers=2, gain=2.0)
    random = np.random.default_rng(4)
    x = random.normal(0, 2, weights.features).astype(np.float32)
    h, c = (random.uniform(-1, 1, weights.zeros(1)[0].shape).astype(np.float32) for _ in range(2))
    gates = explain(weights, x, h, c)
    for m, (model, _) in enumerate(reference.to_torch(weights)):
        below = torch.from_numpy(reference.normalise(weights, x))
        hidden, cell = torch.from_numpy(h[m]), torch.from_numpy(c[m])
        with torch.no_grad():
            _, (torch_h, torch_c) = model(below[None, None], (hidden[:, None], cell[:, None]))
            for layer in range(weights.layers):
                into, kept = getattr(model, f"weight_ih_l{layer}"), getattr(model, f"weight_hh_l{layer}")
                sums = into @ below + kept @ hidden[layer] + getattr(model, f"bias_ih_l{layer}")
                i, f, g, o = sums.chunk(4)
                torchs = (i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid(), torch_c[layer, 0], torch_h[layer, 0])
                for name, ours, reference_value in zip(gates._fields, gates, torchs, strict=True):
                    np.testing.assert_allclose(ours[m, layer], reference_value, atol=1e-6, err_msg=name)
                below = torch_h[layer, 0]


def test_explained_step_is_the_served_step() -> None:
    weights = ensemble(layers=2)
    x = np.random.default_rng(5).normal(0, 1, (1, weights.features)).astype(np.float32)
    h, c, y = weights.zeros(1), weights.zeros(1), weights.answers(1)
    gates = explain(weights, x[0], h[0], c[0])
    lstm.step(weights, x, h, c, y)
    np.testing.assert_allclose(gates.hidden, h[0], atol=1e-6)
    np.testing.assert_allclose(gates.cell, c[0], atol=1e-6)


def test_memory_follows_from_the_forget_gate() -> None:
    weights = ensemble(members=1, hidden=4, inputs=3)
    tensors = {name: array.copy() for name, array in weights.tensors().items()}
    for name in ("first", "recurrent", "bias"):
        tensors[name][...] = 0.0
    forget = np.array([0.5, 0.9, 0.99, 0.999])
    tensors["bias"][0, 0, 4:8] = np.log(forget / (1 - forget))
    x = np.zeros((20, 3), np.float32)
    measured = mean_forget(lstm.Weights.from_tensors(tensors), x)[0, 0]
    np.testing.assert_allclose(measured, forget, rtol=1e-5)
    np.testing.assert_allclose(half_life(measured), [1.0, 6.58, 68.97, 692.8], rtol=2e-3)
    assert np.isfinite(half_life(np.array([0.0, 1.0]))).all()
