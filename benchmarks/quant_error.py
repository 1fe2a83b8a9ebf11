"""How far each quantization scheme is from float32, per kind of linear, on activations as the 4.5B model has them.

`python -m benchmarks.quant_error --out FILE`. No weights of the model travel with the repository, so activations and
weights are made with the statistics that decide quantization error, seeded, at the true layer sizes (output rows cut):
LayerNorm outputs with a learned gain and a few large channels (q, fc1), attention outputs that are averages (proj),
GELU outputs with their heavy tail (fc2). Errors are |quantized - float32| / |float32| of the layer's output. Static
FP8 takes its scales from one half of the rows, as calibration does, and is judged on the other half.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import quant
from benchmarks.figures import RESULTS, save
from quant.calibrate import calibrate_
from quant.convert import convert_

HIDDEN, FFN, ROWS, OUTPUTS = 3072, 12288, 256, 512


def normed(generator: torch.Generator) -> Tensor:
    """LayerNorm output: unit rows times a learned gain; 0.4 % of the channels are 10 to 40 times the others."""
    gain = torch.exp(0.3 * torch.randn(HIDDEN, generator=generator))
    large = torch.randperm(HIDDEN, generator=generator)[: HIDDEN // 256]
    gain[large] *= 10 + 30 * torch.rand(len(large), generator=generator)
    return torch.nn.functional.layer_norm(torch.randn(ROWS, HIDDEN, generator=generator), (HIDDEN,)) * gain


def attended(generator: torch.Generator) -> Tensor:
    """Attention output, 2 * hidden: averages of values, so small numbers whose size differs from head to head."""
    heads = torch.exp(torch.randn(2 * HIDDEN // 128, generator=generator)).repeat_interleave(128)
    x = 0.3 * torch.randn(ROWS, 2 * HIDDEN, generator=generator) * heads
    large = torch.randperm(2 * HIDDEN, generator=generator)[:8]
    x[:, large] *= 25
    return x


def gelu(generator: torch.Generator) -> Tensor:
    """GELU output: most numbers near zero, a heavy positive tail, some channels nearly always on."""
    spread = torch.exp(0.7 * torch.randn(FFN, generator=generator))
    return torch.nn.functional.gelu(torch.randn(ROWS, FFN, generator=generator) * spread - 0.5)


KINDS: dict[str, Callable[[torch.Generator], Tensor]] = {
    "linear_qkv.q": normed,
    "linear_proj": attended,
    "linear_fc1": normed,
    "linear_fc2": gelu,
}
SCHEMES: dict[str, quant.Scheme] = {
    "fp8 row": quant.Fp8("row"),
    "fp8 tensor": quant.Fp8("tensor"),
    "int8": quant.Int8(),
    "nf4": quant.NF4(),
}


def error(layer: nn.Module, x: Tensor, truth: Tensor) -> float:
    """Relative L2 error of a layer's output."""
    return ((layer(x).double() - truth).norm() / truth.norm()).item()


def measure(name: str, generator: torch.Generator) -> dict[str, float]:
    """Every scheme on one kind of linear."""
    x = KINDS[name](generator)
    seen, judged = x[: ROWS // 2], x[ROWS // 2 :]
    linear = nn.Linear(x.shape[1], OUTPUTS, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) * (x.shape[1] ** -0.5))
    truth = judged.double() @ linear.weight.double().t()
    short = name.rpartition(".")[2]
    errors = {}
    for label, scheme in SCHEMES.items():
        module = nn.ModuleDict({short: linear})
        convert_(module, scheme, lambda _name: True)
        errors[label] = error(module[short], judged, truth)
    recording = quant.Recording({short: seen.abs().amax(0)}, {short: seen})
    for label, alphas in (("published static (alpha 0.45)", (0.45,)), ("static, alpha searched", quant_alphas())):
        module = nn.ModuleDict({short: linear})
        calibrate_(module, recording, alphas=alphas)
        errors[label] = error(module[short], judged, truth)
    errors["bf16"] = error(linear.bfloat16(), judged.bfloat16(), truth)
    linear.float()
    return errors


def quant_alphas() -> tuple[float, ...]:
    """The alphas that calibration searches."""
    from quant.calibrate import ALPHAS

    return ALPHAS


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, write the JSON."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--out", type=Path, default=RESULTS / "quant_error.json")
    made.add_argument("--seeds", type=int, default=3)
    options = made.parse_args(arguments)
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for number, name in enumerate(KINDS):
        seeds = range(100 * number, 100 * number + options.seeds)
        runs = [measure(name, torch.Generator().manual_seed(seed)) for seed in seeds]
        results[name] = {label: sum(run[label] for run in runs) / len(runs) for label in runs[0]}
        print(name, "  ".join(f"{label} {value:.4f}" for label, value in results[name].items()), flush=True)
    about = "relative L2 error of a linear's output against float64, mean over seeds; synthetic activations"
    data = {"about": about, "seeds": options.seeds, "torch": torch.__version__, "device": "cpu", "errors": results}
    save(options.out, data)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
