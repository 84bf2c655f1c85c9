"""The published recurrence, by golden vectors of its literal form: outputs, final state and every gradient."""

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
        return {key: torch.from_numpy(file[key]) for key in file.files}


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
