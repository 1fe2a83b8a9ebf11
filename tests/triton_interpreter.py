"""Triton's interpreter, which runs kernels on the CPU, made to round as cards do.

Triton reads once, when it is imported, whether to interpret: so tests of kernels lie in files that are not collected
with the others and run in a process of their own (`in_own_process`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


def in_own_process(file: Path) -> None:
    """Run a file of tests with every kernel interpreted; all must pass."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def round_as_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Casts between floats are torch's: the interpreter's own truncate, and lose a carry in e4m3.

    And a product that is added to a float32 number is rounded once, with it.
    """
    from triton.runtime import interpreter

    sizes = {8: (torch.uint8, np.uint8), 16: (torch.int16, np.uint16), 32: (torch.int32, np.uint32)}
    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8e4nv": torch.float8_e4m3fn}

    def cast(numbers: Any, given: Any, wanted: Any, rounding: Any) -> Any:
        source = torch.from_numpy(np.ascontiguousarray(numbers).view(sizes[given.primitive_bitwidth][1]))
        values = source.view(types[str(given)]).to(types[str(wanted)])
        bits, array = sizes[wanted.primitive_bitwidth]
        return values.view(bits).numpy().view(array)

    def fused(builder: Any, x: Any, y: Any, z: Any) -> Any:
        with np.errstate(over="ignore", invalid="ignore"):
            exact = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data.astype(np.float64)
            return interpreter.TensorHandle(exact.astype(x.data.dtype), z.dtype.scalar)

    monkeypatch.setattr(interpreter, "_convert_float", cast)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", fused)
