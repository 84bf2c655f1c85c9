"""The published recurrence, by golden vectors of its literal form: outputs, final state and every gradient."""

import ast
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from algornn.triton_kernels import tensor_memory

WAYS = [("reference", None), ("auto", None), *(("torch", chunk) for chunk in (None, 1, 2, 4))]


def golden(name):
    """Numbers of the literal recurrence: $ALGORNN_GOLDEN, or shared/golden beside the checkout."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "golden"
    path = Path(os.environ.get("ALGORNN_GOLDEN", beside)) / name
    if not path.is_file():
        pytest.skip(f"the golden vectors {path} are missing; set ALGORNN_GOLDEN to their folder")
    with np.load(path) as file:
        return {key: str(file[key]) if key == "config" else torch.from_numpy(file[key]) for key in file.files}


def relative_error(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("name", ["tpr_memory_a", "tpr_memory_b"])
@pytest.mark.parametrize(("backend", "chunk"), WAYS)
def test_golden_vectors(name, backend, chunk):
    wanted = golden(f"{name}.npz")
    inputs = {key.removeprefix("grad/") for key in wanted if key.startswith("grad/")}
    assert inputs == {"e1", "e2", "r1", "r2", "r3", "F0", "n1", "l1", "l2", "l3"}
    x = {key: wanted[key].clone().requires_grad_() for key in sorted(inputs)}

    entities = torch.stack([x["e1"], x["e1"], x["e2"]], dim=2)
    memory = tensor_memory(
        write=(entities, torch.stack([x["r1"], x["r2"], x["r3"]], dim=2)),
        values=torch.stack([x["e2"], torch.zeros_like(x["e2"]), x["e1"]], dim=2),
        erase=(entities, torch.stack([x["r1"], x["r2"] - x["r1"], x["r3"]], dim=2)),
        initial_state=x["F0"],
        mask=torch.arange(x["e1"].shape[1]) < wanted["lengths"][:, None],
        chunk=chunk,
        backend=backend,
    )
    i, out = x["n1"], 0
    for role in ("l1", "l2", "l3"):
        i = F.layer_norm(memory.read(i, x[role]), i.shape[-1:], eps=1e-7)
        out = out + i
    assert relative_error(out, wanted["out"]) < 1e-10
    assert relative_error(memory.state, wanted["F"]) < 1e-10

    ((out * wanted["cotangent_out"]).sum() + (memory.state * wanted["cotangent_F"]).sum()).backward()
    for key, value in x.items():
        assert relative_error(value.grad, wanted[f"grad/{key}"]) < 1e-10, key


def language_model(x, p, residual, state, **how):
    """The released language model of the Fast Weight Memory around the operator: logits, and (h, c, S)."""
    h, c, S = state
    words, hidden = F.embedding(x, p["embedding.weight"]), []
    for t in range(x.shape[1]):
        gates = words[:, t] @ p["lstm.W_ih"].T + h @ p["lstm.W_hh"].T + p["lstm.bias"]
        i, f, z, o = gates.chunk(4, dim=1)
        new_c = (f + 1).sigmoid() * c + i.sigmoid() * z.tanh()
        new_h = o.sigmoid() * new_c.tanh()
        counts = (x[:, t] != 0)[:, None]
        h, c = torch.where(counts, new_h, h), torch.where(counts, new_c, c)
        hidden.append(new_h)
    z = torch.stack(hidden, 1)
    s, r, v, b = F.linear(z, p["W_write.weight"], p["W_write.bias"]).split([5, 4, 5, 1], dim=2)
    memory = tensor_memory(
        write=(s.tanh()[:, :, None], r.tanh()[:, :, None]),
        values=v.tanh()[:, :, None],
        beta=(b + 1).sigmoid() / 5,
        clamp=True,
        initial_state=S,
        mask=x != 0,
        **how,
    )
    q, *roles = F.linear(z, p["W_read.weight"], p["W_read.bias"]).split([5, 4, 4, 4], dim=2)
    for role in roles:
        q = F.layer_norm(memory.read(q, role.tanh(), causal=True), (5,))
    out = F.linear(q, p["output.weight"], p["output.bias"])
    return (z + out if residual else out) @ p["linear.weight"].T, (h, c, memory.state)


@pytest.mark.parametrize("name", ["fwm_lm_a", "fwm_qa_a"])
@pytest.mark.parametrize(("backend", "chunk"), WAYS)
def test_golden_language_model_over_two_segments(name, backend, chunk):
    wanted = golden(f"{name}.npz")
    config = ast.literal_eval(wanted["config"])
    keys = {key: key.removeprefix("rnn.cells.0.").replace("linear", "output") for key in parameter_names(wanted)}
    keys["linear.weight"] = "linear.weight"
    p = {own: wanted[f"param/{key}"].clone().requires_grad_() for key, own in keys.items()}
    zeros = wanted["state_h"].new_zeros
    state, total = (zeros(3, 12), zeros(3, 12), zeros(3, 5, 4, 5)), 0
    for segment in ("1", "2"):
        x = wanted[f"x{segment}"]
        logits, state = language_model(x, p, config["residual"], state, backend=backend, chunk=chunk)
        counts = x == config["QM"] if config["ra_mode"] else x != config["PAD"]
        assert relative_error(logits[counts], wanted[f"logits{segment}"][counts]) < 1e-10
        total = total + (logits * wanted[f"cotangent{segment}"])[counts].sum()
    for value, key in zip(state, ("h", "c", "F"), strict=True):
        assert relative_error(value, wanted[f"state_{key}"]) < 1e-10
    total.backward()
    for key, own in keys.items():
        assert relative_error(p[own].grad, wanted[f"grad/{key}"]) < 1e-10, key


def parameter_names(wanted):
    """The names of the released model's parameters."""
    return [key.removeprefix("param/") for key in wanted if key.startswith("param/")]
