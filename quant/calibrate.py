"""Static scales from recorded activations: what turns a bf16 model into one of the published form.

A `Recorder` watches linears during any run and keeps, per layer, the largest magnitude of every input channel and an
even sample of rows. SmoothQuant (arXiv 2211.10438, eq. 4) moves the difficulty of outlier channels into the weights:
s_j = max|X_j|^alpha / max|W_j|^(1 - alpha); x / s and W * s give the same product. The published checkpoints used 0.45;
here alpha is searched per layer by the error of the quantized output on the sampled rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from quant.activations import static
from quant.convert import Report, is_plain, put_, swap_of
from quant.errors import QuantError, WeightsError
from quant.fp8 import quantize_weight
from quant.published import PublishedPerTensorLinear, PublishedSmoothLinear, static_matmul
from quant.schemes import FP8_MAX, Published
from quant.storage.shards import Checkpoint
from quant.storage.tensors import write_tensors

ALPHAS = (0.4, 0.45, 0.5, 0.55, 0.6)
SMALLEST = 1e-5
"""Stands in for the magnitude of a channel that was never active."""


@dataclass(frozen=True)
class Recording:
    """Activations seen: per layer the largest magnitude of each input channel (in,), and sampled rows (rows, in)."""

    absmax: dict[str, Tensor]
    rows: dict[str, Tensor]

    def write(self, path: Path) -> None:
        """Save as safetensors, whole or not at all.

        Raises:
            QuantError: the disk refuses.
        """
        tensors = {f"absmax.{name}": value for name, value in self.absmax.items()}
        tensors |= {f"rows.{name}": value for name, value in self.rows.items()}
        write_tensors(path, tensors, {"kind": "activations"})

    def digest(self) -> str:
        """SHA-256 of all numbers."""
        digest = hashlib.sha256()
        for name in sorted(self.absmax):
            digest.update(name.encode())
            for tensor in (self.absmax[name], self.rows[name]):
                digest.update(tensor.float().contiguous().numpy().tobytes())
        return digest.hexdigest()


def read_recording(path: Path) -> Recording:
    """Read what `Recording.write` wrote.

    Raises:
        QuantError: the file is missing, damaged or something else.
    """
    try:
        stored = Checkpoint.open(path)
        tensors = {name: stored.read(name, own=True) for name in stored.tensors}
    except WeightsError as error:
        raise QuantError(f"{path} cannot be read ({error}); record a calibration with quant.Recorder.") from error
    absmax = {name.removeprefix("absmax."): t for name, t in tensors.items() if name.startswith("absmax.")}
    rows = {name.removeprefix("rows."): t for name, t in tensors.items() if name.startswith("rows.")}
    if not absmax or absmax.keys() != rows.keys():
        raise QuantError(f"{path} is no calibration file; record one with quant.Recorder.")
    return Recording(absmax, rows)


def plain_linears(module: nn.Module) -> dict[str, nn.Linear]:
    """The linears that can be quantized (`quant.convert.is_plain`), each under the first of its names."""
    return {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear) and is_plain(m)}


class Recorder:
    """Watches the linears of a module whose names satisfy `where` while entered; runs go on unchanged.

    rows: how many input rows are kept per layer: a uniform sample over everything seen, reproducible by `seed`.
    """

    def __init__(self, module: nn.Module, where: Callable[[str], bool], rows: int = 64, seed: int = 0) -> None:
        found = {n: m for n, m in plain_linears(module).items() if where(n)}
        if not found:
            raise QuantError("No linear satisfies the predicate; check the names it expects.")
        self._linears, self._count = found, rows
        self._generator = torch.Generator().manual_seed(seed)
        self._absmax: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}
        self._lots: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Recorder:
        for name, linear in self._linears.items():
            hook = linear.register_forward_pre_hook(partial(self._before, name), with_kwargs=True)
            self._handles.append(hook)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before(self, name: str, _linear: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        self._see(name, inputs[0] if inputs else named["input"])

    def _see(self, name: str, x: Tensor) -> None:
        """Every row draws a lot; the highest lots ever drawn stay: a uniform sample however many calls there are."""
        flat = x.detach().reshape(-1, x.shape[-1])
        if flat.shape[0] == 0:
            return
        low, high = torch.aminmax(flat, dim=0)
        largest = torch.maximum(low.abs(), high.abs()).float().cpu()
        lots = torch.rand(flat.shape[0], generator=self._generator)
        best = lots.topk(min(self._count, len(lots))).indices
        rows = flat[best.to(flat.device)].float().cpu()
        lots = lots[best]
        if name in self._absmax:
            largest = torch.maximum(largest, self._absmax[name])
            lots, rows = torch.cat([self._lots[name], lots]), torch.cat([self._rows[name], rows])
            keep = lots.topk(min(self._count, len(lots))).indices
            lots, rows = lots[keep], rows[keep]
        self._absmax[name], self._lots[name], self._rows[name] = largest, lots, rows

    def recording(self) -> Recording:
        """What was seen so far.

        Raises:
            QuantError: a watched layer never ran.
        """
        silent = self._linears.keys() - self._absmax.keys()
        if silent:
            raise QuantError(f"{min(silent)} never ran while recording; run the whole model inside the recorder.")
        return Recording(dict(self._absmax), dict(self._rows))


# --- scales ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """A layer in published form: tensors by name, alpha (None: not smoothed), the output's error on the rows."""

    tensors: dict[str, Tensor]
    alpha: float | None
    error: float


def published_tensors(
    weight: Tensor, recording: Recording, name: str, scheme: Published, alphas: Sequence[float] = ALPHAS
) -> Fitted:
    """The published form of a weight (out, in) for the recorded activations of layer `name`.

    Raises:
        QuantError: the layer was not recorded, or with another width, or not with finite numbers.
    """
    absmax, rows = recording.absmax.get(name), recording.rows.get(name)
    if absmax is None or rows is None or absmax.numel() != weight.shape[1]:
        raise QuantError(f"The calibration lacks {name} with {weight.shape[1]} channels; record this model's run.")
    if not bool(torch.isfinite(absmax).all() and torch.isfinite(rows).all()):
        raise QuantError(f"The calibration of {name} holds NaN or infinity; record a run that stays finite.")
    weight = weight.detach().float().cpu()
    absmax, rows = absmax.float().clamp_min(SMALLEST), rows.float()
    wanted = rows @ weight.t()
    if not scheme.is_smooth(name):
        scale = (absmax.max() / FP8_MAX).reshape(1)
        tensors = _static_form(weight) | {"input_scale": scale.expand(len(absmax)).contiguous()}
        return Fitted(tensors, None, _error(rows, scale, scale, tensors, wanted))
    best: Fitted | None = None
    for alpha in alphas:
        smooth = absmax.pow(alpha) / weight.abs().amax(dim=0).clamp_min(SMALLEST).pow(1 - alpha)
        scale = ((absmax / smooth).max() / FP8_MAX).reshape(1)
        divisor = smooth * scale
        tensors = _static_form(weight * smooth) | {"input_scale": scale, "smooth_scale": divisor[None]}
        fitted = Fitted(tensors, alpha, _error(rows, divisor, scale, tensors, wanted))
        best = fitted if best is None or fitted.error < best.error else best
    assert best is not None, "no alpha to choose from"
    return best


def _static_form(weight: Tensor) -> dict[str, Tensor]:
    values, scale = quantize_weight(weight, "tensor")
    return {"weight": values[None], "weight_scale": scale}


def _error(rows: Tensor, divisor: Tensor, scale: Tensor, tensors: dict[str, Tensor], wanted: Tensor) -> float:
    """|quantized output - output| / |output| on the sampled rows."""
    values = static(rows.contiguous(), divisor)
    result = static_matmul(values, tensors["weight"], scale, tensors["weight_scale"], torch.float32)
    return ((result - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


def calibrate_(
    module: nn.Module, recording: Recording, scheme: Published | None = None, alphas: Sequence[float] = ALPHAS
) -> tuple[Report, dict[str, Fitted]]:
    """Swap every recorded linear for a published-form layer with calibrated scales, in place.

    Returns:
        What was swapped, and per layer the alpha chosen and its output error (tensors are the layer's own).

    Raises:
        QuantError: a recorded layer is not a linear of the module.
    """
    scheme = scheme or Published()
    linears = plain_linears(module)
    for name in recording.absmax:
        if name not in linears:
            raise QuantError(f"The module has no linear {name}; the calibration is of another model.")
    swaps, fits = [], {}
    for name in recording.absmax:
        linear = linears.pop(name)
        fitted = published_tensors(linear.weight, recording, name, scheme, alphas)
        kind = PublishedSmoothLinear if scheme.is_smooth(name) else PublishedPerTensorLinear
        layer = kind(linear.in_features, linear.out_features, scheme, linear.bias, linear.weight.device)
        layer.fill(fitted.tensors)
        swaps.append(swap_of(name, linear, layer))
        fits[name] = fitted
        for parent in list(module.modules()):  # a linear that appears twice was recorded once, and stays one
            for attribute, child in list(parent._modules.items()):
                if child is linear:
                    put_(parent, attribute, layer)
    kept = tuple(name for name, child in module.named_modules() if isinstance(child, nn.Linear))
    return Report(scheme, tuple(swaps), kept), fits
