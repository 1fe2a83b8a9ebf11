"""The Triton kernels compiled to machine code of real cards, which needs no card: what the interpreter cannot show.

They are compiled for the very arguments that `quant.kernels` launches them with, at the widths of the 4.5B and the 24B.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from quant import fusion
from quant.kinds import FP8

if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

POINTERS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32", torch.int8: "*i8",
    FP8: "*fp8e4nv",
}  # fmt: skip
WIDTHS = [(None, 6144), ("layer_norm", 3072), ("layer_norm", 6144), ("gelu", 12288), ("gated_silu", 16384)]
AMPERE, ADA, HOPPER, BLACKWELL = 86, 89, 90, 120
OLDEST = {torch.int8: 80, FP8: 89}


class Launch:
    """Stands in for a kernel: remembers what it was launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.arguments, self.options = kernel, (), {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            self.arguments, self.options = arguments, options

        return launch


def compiled(launch: Launch, capability: int) -> Any:
    """The kernel of a launch for a card, specialized as Triton does: pointers and sizes that 16 divides are known."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    signature, attributes = dict.fromkeys(names, "constexpr"), {}
    for place, (name, value) in enumerate(zip(names, launch.arguments, strict=False)):
        match value:
            case torch.Tensor():
                signature[name] = POINTERS[value.dtype]
            case int():
                signature[name] = "i32"
            case float():
                signature[name] = "fp32"
        if not isinstance(value, float) and not (isinstance(value, int) and value % 16):
            attributes[(place,)] = [["tt.divisibility", 16]]
    options = dict(launch.options)
    settings = {"num_warps": options.pop("num_warps")}
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=options, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=settings)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def launched(
    monkeypatch: pytest.MonkeyPatch, name: str, work: Callable[[Any], object], kernels: Any = None
) -> Launch:
    """What `work` launches the kernel of that name with."""
    if kernels is None:
        from quant import kernels
    launch = Launch(getattr(kernels, name))
    monkeypatch.setattr(kernels, name, launch)
    work(kernels)
    return launch


def check(made: Any, tmp_path: Path, capability: int) -> None:
    """It became machine code for that card, reads 16 bytes at a time and keeps all of a row in registers."""
    assert f"sm_{capability}" in made.asm["ptx"] and len(made.asm["cubin"]) > 1000
    assert re.search(r"ld\.global[.\w]*\.(v4|b128)", made.asm["ptx"])
    tool = Path(find_spec("triton").origin).parent / "backends/nvidia/bin/cuobjdump"
    file = tmp_path / "kernel.cubin"
    file.write_bytes(made.asm["cubin"])
    report = subprocess.run([tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True)
    assert set(re.findall(r"(?:STACK|LOCAL):(\d+)", report.stdout)) == {"0"}, "registers were spilled to memory"


@pytest.mark.parametrize(
    ("kind", "capability"),
    [(kind, card) for kind, oldest in OLDEST.items() for card in (AMPERE, ADA, HOPPER, BLACKWELL) if card >= oldest],
)
def test_quantization_by_row_compiles(
    kind: torch.dtype, capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for formula, features in WIDTHS:
        operation = fusion.example(formula, features, torch.bfloat16, torch.device("cpu"))
        x = torch.zeros(2, features * (2 if formula == "gated_silu" else 1), dtype=torch.bfloat16)
        with monkeypatch.context() as patch:
            launch = launched(patch, "_rows_kernel", lambda kernels: kernels.quantize_rows(x, kind, operation))  # noqa: B023
        made = compiled(launch, capability)
        check(made, tmp_path, capability)
        if kind == FP8:
            assert "cvt.rn.satfinite.e4m3x2.f32" in made.asm["ptx"], "one rounding, and the card's own"


@pytest.mark.parametrize("capability", [ADA, HOPPER, BLACKWELL])
@pytest.mark.parametrize("one", [True, False])
def test_quantization_by_fixed_scales_compiles(
    one: bool, capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    operation = fusion.example("layer_norm", 3072, torch.bfloat16, torch.device("cpu"))
    x, divisor = torch.zeros(2, 3072, dtype=torch.bfloat16), torch.ones(1 if one else 3072)
    launch = launched(
        monkeypatch, "_static_kernel", lambda kernels: kernels.quantize_static(x, divisor, True, operation)
    )
    check(compiled(launch, capability), tmp_path, capability)


@pytest.mark.parametrize("capability", [AMPERE, ADA, HOPPER, BLACKWELL])
@pytest.mark.parametrize("kind", [torch.int32, torch.float32, torch.bfloat16])
def test_scaling_of_products_compiles(
    kind: torch.dtype, capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """INT8's products, FP8's in float32, and FP8's in bfloat16, which are scaled in place."""
    product = torch.zeros(2, 12288, dtype=kind)
    result = product if kind == torch.bfloat16 else torch.zeros(2, 12288, dtype=torch.bfloat16)
    scales = torch.ones(2, 1), torch.ones(12288, 1)
    launch = launched(monkeypatch, "_scaling_kernel", lambda kernels: kernels.scale_product(product, *scales, result))
    check(compiled(launch, capability), tmp_path, capability)
