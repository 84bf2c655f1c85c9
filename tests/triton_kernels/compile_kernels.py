"""Compile, for GPUs that are not there, every kernel that an operator launches; print what each takes.

    python tests/triton_kernels/compile_kernels.py CASES

CASES names a module beside this file whose `CASES` maps a name to a function that calls an operator, forward and
backward, at the sizes of a recipe. Launches are recorded instead of run. One JSON line per kernel and target: bytes of
shared memory and, for NVIDIA, registers and bytes of stack (0: nothing spills), for AMD spilled registers.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # what the interpreter decorates cannot be compiled

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from algornn.triton_kernels import dispatch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32"}
LAUNCHED: dict[str, tuple] = {}


def record(kernel: JITFunction, *args, grid, warmup=False, **kwargs) -> None:
    """Keep how a kernel would have been specialised: what the launcher does with its arguments."""
    options = {key: kwargs.pop(key) for key in ("num_warps", "num_stages", "maxnreg") if key in kwargs}
    values = dict(zip((p.name for p in kernel.params), args, strict=False)) | kwargs
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    key = f"{kernel.__name__} {sorted(signature.items())} {sorted(constants.items(), key=str)} {options}"
    LAUNCHED[key] = (kernel, signature, constants, attributes, options)


def compiled(target: GPUTarget, kernel, signature, constants, attributes, options) -> dict:
    """Compile one recorded launch and read back what it takes."""
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    result = triton.compile(source, target=target, options=options)
    row = {"kernel": kernel.__name__, "shared": result.metadata.shared, "warps": result.metadata.num_warps}
    if target.backend == "hip":
        return row | {"spills": int(re.search(r"\.vgpr_spill_count:\s*(\d+)", result.asm["amdgcn"])[1])}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return row | {name.lower(): int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK")}


def main(module: str, *only: str) -> None:
    JITFunction.run = record
    dispatch._no_kernels = lambda tensor: None  # CPU tensors stand for CUDA tensors
    for case, call in importlib.import_module(module).CASES.items():
        for backend, version in (("cuda", None), ("hip", "6")):
            torch.version.hip = version  # what a launcher asks
            LAUNCHED.clear()
            call()
            targets = {name: t for name, t in TARGETS.items() if t.backend == backend and (not only or name in only)}
            for launch in LAUNCHED.values():
                for name, target in targets.items():
                    print(json.dumps({"case": case, "target": name, **compiled(target, *launch)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
