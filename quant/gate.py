"""Which kernels may be used: one gate for all that is not plain torch.

On CUDA there are our Triton kernels and, where they do not serve, torch.compile's. Each is tried once per device,
width, types and operation: a result unlike the plain path's is not accepted, and the plain path is taken.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from quant import fusion
from quant.fusion import Formula, Operation
from quant.kinds import SMALLEST_ABSMAX, exact_ratio, largest, steps_apart, to_kind
from quant.schemes import FP8_MAX

_log = logging.getLogger(__name__)


def fast_kernels(x: Tensor, kind: torch.dtype, operation: Operation | None = None) -> ModuleType | None:
    """The module that quantizes this tensor to that type after that operation: `kernels`, `compiled` or None."""
    if not _on_a_card(x):
        return None
    formula = None if operation is None else operation.formula
    features = x.shape[-1] if operation is None else operation.features(x.shape[-1])
    return _for_activations(x.device.index or 0, features, kind, x.dtype, formula)


def product_kernels(result: Tensor, product: Tensor) -> ModuleType | None:
    """The module whose `scale_product` scales this product into that result: `kernels` or None."""
    if not _on_a_card(product) or not (result.is_contiguous() and product.is_contiguous()):
        return None
    return _for_products(product.device.index or 0, product.dtype, result.dtype)


def _on_a_card(x: Tensor) -> bool:
    return x.is_cuda and not isinstance(x, torch._subclasses.FakeTensor) and not torch.version.hip


@lru_cache
def _for_activations(
    index: int, features: int, kind: torch.dtype, dtype: torch.dtype, formula: Formula | None
) -> ModuleType | None:
    oldest = (8, 0) if kind == torch.int8 else (8, 9)
    if torch.cuda.get_device_capability(index) < oldest or importlib.util.find_spec("triton") is None:
        return None
    from quant import compiled, kernels

    device = torch.device("cuda", index)
    if kernels.triton is not None and features <= kernels.WIDEST_ROW:
        problem = disagreement(kernels, device, features, kind, dtype, formula)
        if problem is None:
            return kernels
        _log.warning("The Triton quantization kernels are not used on %s: %s", device, problem)
    return compiled if disagreement(compiled, device, features, kind, dtype, formula) is None else None


@lru_cache
def _for_products(index: int, product: torch.dtype, result: torch.dtype) -> ModuleType | None:
    if importlib.util.find_spec("triton") is None:
        return None
    from quant import kernels

    if kernels.triton is None:
        return None
    problem = product_disagreement(torch.device("cuda", index), product, result)
    if problem is not None:
        _log.warning("The Triton kernel that scales products is not used on cuda:%d: %s", index, problem)
    return kernels if problem is None else None


@lru_cache
def triton_problem(index: int) -> str:
    """Why our Triton kernels cannot run on a card that could run them, and what mends it, as a sentence; else empty."""
    if torch.version.hip or torch.cuda.get_device_capability(index) < (8, 0):
        return ""
    windows = sys.platform == "win32"
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed, without which many steps are slower; install it: {install_triton(windows)}."
    from quant import kernels

    if kernels.triton is None:
        return "Triton is installed and cannot be imported, without which many steps are slower; install it again."
    problem = product_disagreement(torch.device("cuda", index), torch.float32, torch.float32)
    if problem is None:
        return ""
    if "compiler" in problem.lower() and not windows:
        return "Triton finds no C compiler, without which many steps are slower; install one: sudo apt install gcc."
    if problem.startswith("CalledProcessError"):
        return (
            "Triton's C compiler fails, which most often wants Python's headers; without it many steps are slower; "
            f"install them: sudo apt install python3.{sys.version_info.minor}-dev."
        )
    cure = "" if not windows or _fits() else f"; install the one for this PyTorch: {install_triton(windows)}."
    why = problem.splitlines()[0][:200]
    return f"Triton does not work on this card, without which many steps are slower: {why}{cure}"


TRITON_OF_TORCH = {
    (2, 6): (3, 2), (2, 7): (3, 3), (2, 8): (3, 4), (2, 9): (3, 5), (2, 10): (3, 6), (2, 11): (3, 6), (2, 12): (3, 7),
    (2, 13): (3, 7),
}  # fmt: skip
"""The Triton that each torch is released with, as its wheels for Linux require it; triton-windows is numbered alike,
and no torch for Windows brings it along. pyproject.toml and README.md name the one for `CUDA_TORCH`."""
CUDA_TORCH = (2, 11)
"""The newest torch of the index that README.md names, cu128."""


def triton_for(torch_version: tuple[int, int], windows: bool) -> str:
    """The requirement that fits a torch; of one that is not known, as for the newest that is."""
    major, minor = TRITON_OF_TORCH.get(torch_version, TRITON_OF_TORCH[max(TRITON_OF_TORCH)])
    return f"triton{'-windows' if windows else ''}>={major}.{minor},<{major}.{minor + 1}"


def install_triton(windows: bool) -> str:
    """The command that installs the Triton of the torch that is here."""
    return f'pip install "{triton_for(_numbers(torch.__version__), windows)}"'


def _fits() -> bool:
    """Whether the installed Triton is the one of this torch."""
    from quant import kernels

    assert kernels.triton is not None
    return _numbers(kernels.triton.__version__) == TRITON_OF_TORCH.get(_numbers(torch.__version__))


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def disagreement(
    fast: ModuleType,
    device: torch.device,
    features: int,
    kind: torch.dtype,
    dtype: torch.dtype,
    formula: Formula | None,
) -> str | None:
    """Run the functions of `fast` once against plain arithmetic; what is wrong with them, or None.

    Quantization alone must give the same bits in our kernels. After an operation, whose sums add up in another order,
    and in generated code, which divides less exactly, every number must lie within a step of the plain one, or one and
    a half where the operation's own result was rounded to 16 bits: a unit in the last place of it is up to a step.

    Raises:
        torch.OutOfMemoryError: that says nothing about the functions, and must not be remembered as if it did.
    """
    most = 1.0 if dtype == torch.float32 else 1.5
    try:
        operation = fusion.example(formula, features, dtype, device)
        inputs = 2 * features if formula == "gated_silu" else features
        x = torch.randn(8, inputs, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        x[:, 0] *= 50
        plain = (x if operation is None else operation(x)).float()
        values, scale = fast.quantize_rows(x, kind, operation)
        wanted = exact_ratio(plain.abs().amax(1, keepdim=True).clamp_min(SMALLEST_ABSMAX), largest(kind))
        pairs = [(values, plain / scale)]
        if not torch.allclose(scale, wanted, rtol=0.01):
            return f"{kind} scales differ from plain arithmetic"
        if kind != torch.int8:
            divisor = torch.rand(features, generator=torch.Generator().manual_seed(3)).to(device) + 0.01
            for by in (divisor, divisor[:1]):
                scaled = (plain / by).clamp(-FP8_MAX, FP8_MAX).to(torch.bfloat16).float()
                pairs.append((fast.quantize_static(x, by, True, operation), scaled))
        exact = operation is None and fast.__name__ == "quant.kernels"
        for found, scaled in pairs:
            same = torch.equal(found.float(), to_kind(scaled.clone(), kind).float()) if exact else True
            if not same or not steps_apart(found, scaled) <= most:
                return f"{kind} values differ from plain arithmetic"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler raises, the plain path still works
        return f"{type(error).__name__}: {error}"
    return None


def product_disagreement(device: torch.device, product: torch.dtype, result: torch.dtype) -> str | None:
    """Run the kernel that scales products against plain arithmetic; what is wrong with it, or None.

    Raises:
        torch.OutOfMemoryError: that says nothing about the kernel.
    """
    from quant import kernels

    try:
        random = torch.Generator().manual_seed(0)
        numbers = torch.randint(-(1 << 27), 1 << 27, (5, 1040), generator=random).to(device, product)
        rows, columns = (0.001 + torch.rand(n, 1, generator=random).to(device) for n in numbers.shape)
        for scale, weight_scale in ((rows, columns), (rows[0], columns[0])):
            found = torch.empty(numbers.shape, dtype=result, device=device)
            kernels.scale_product(numbers, scale, weight_scale, found)
            if not torch.equal(found, (numbers.float() * weight_scale.view(-1) * scale).to(result)):
                return "it gives other bits than plain arithmetic"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler raises, the plain path still works
        return f"{type(error).__name__}: {error}"
    return None
