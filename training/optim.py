"""The optimizer of the demo model: AdamW for what is read or written by few, orthogonalized momentum for the matrices.

MAGI-1 was trained with AdamW (betas 0.9, 0.95). On two cores the number of steps is what is short, and momentum whose
singular values are all made equal (the Muon optimizer) gets further per step on the square matrices inside the
blocks; embeddings, norms, biases, first and last layers stay with AdamW. `matrix_rate` 0 gives AdamW for all.
State lives in plain named tensors, so that a checkpoint is safetensors and a resumed run goes on bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.95)
MOMENTUM = 0.95
NARROW = 64
"""Inputs up to which a weight of AdamW has the full rate, where rates go by width."""
_NEWTON_SCHULZ = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
)
"""Coefficients of four iterations that drive all singular values towards one."""


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix inside a transformer's blocks."""
    return parameter.ndim == 2 and ("blocks." in name or ".block." in name) and "ada_modulate" not in name


def orthogonalize(matrices: Tensor, half: bool = False) -> Tensor:
    """(B, m, n) -> the nearest matrices with singular values about one, computed in float32 or in bfloat16."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.bfloat16() if half else x
    for a, b, c in _NEWTON_SCHULZ:
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.transpose(1, 2)).float()


def _share(parameter: Tensor) -> float:
    """Part of the rate that a parameter gets by its number of inputs; vectors and position tables have it all."""
    return 1.0 if parameter.ndim < 2 or len(parameter) == 1 else min(1.0, NARROW / parameter[0].numel())


class Optimizer:
    """Steps named parameters; gradients are clipped to norm 1 first.

    Args:
        parameters: name -> parameter.
        rate: AdamW's peak learning rate. matrix_rate: Muon's; 0: AdamW for matrices too.
        by_width: divide AdamW's rate of a weight by its number of inputs over `NARROW`. All entries of a row move
            together, so that at one rate for all a row of 768 moves what it gives out by half its range in a step.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        rate: float,
        matrix_rate: float,
        weight_decay: float = 0.0,
        matrices: Callable[[str, Tensor], bool] = is_block_matrix,
        by_width: bool = False,
    ) -> None:
        self.by_width = by_width
        self.rate, self.matrix_rate, self.weight_decay = rate, matrix_rate, weight_decay
        chosen = {n for n, p in parameters.items() if matrix_rate and matrices(n, p)}
        self.matrices = {n: p for n, p in parameters.items() if n in chosen}
        self.others = {n: p for n, p in parameters.items() if n not in chosen}
        self.steps = 0
        self.half = False
        """Orthogonalize in bfloat16: where products in it are faster."""
        self.state: dict[str, Tensor] = {f"{n}.momentum": torch.zeros_like(p) for n, p in self.matrices.items()}
        for name, p in self.others.items():
            self.state |= {f"{name}.first": torch.zeros_like(p), f"{name}.second": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One update at `scale` times the peak rates; parameters without a gradient stay."""
        self.steps += 1
        with_gradient = [p for p in (*self.matrices.values(), *self.others.values()) if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(with_gradient, 1.0)
        self._adam(scale * self.rate)
        if self.matrices:
            self._muon(scale * self.matrix_rate)

    def _adam(self, rate: float) -> None:
        first_beta, second_beta = BETAS
        names = [n for n, p in self.others.items() if p.grad is not None]
        parameters = [self.others[n] for n in names]
        gradients = [p.grad for p in parameters]
        first, second = ([self.state[f"{n}.{part}"] for n in names] for part in ("first", "second"))
        torch._foreach_lerp_(first, gradients, 1 - first_beta)
        torch._foreach_mul_(second, second_beta)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - second_beta)
        bias_one, bias_two = 1 - first_beta**self.steps, 1 - second_beta**self.steps
        deviation = torch._foreach_sqrt(torch._foreach_div(second, bias_two))
        torch._foreach_add_(deviation, 1e-8)
        if self.weight_decay:
            torch._foreach_mul_(parameters, 1 - rate * self.weight_decay)
        lengths = [-rate / bias_one * (_share(p) if self.by_width else 1.0) for p in parameters]
        torch._foreach_addcdiv_(parameters, first, deviation, lengths)

    def _muon(self, rate: float) -> None:
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for name, p in self.matrices.items():
            if p.grad is None:
                continue
            momentum = self.state[f"{name}.momentum"].lerp_(p.grad, 1 - MOMENTUM)
            by_shape.setdefault(p.shape, []).append((p, p.grad.lerp(momentum, MOMENTUM)))
        for shape, pairs in by_shape.items():
            updates = orthogonalize(torch.stack([update for _, update in pairs]), self.half)
            length = rate * max(1.0, shape[0] / shape[1]) ** 0.5
            for (p, _), update in zip(pairs, updates, strict=True):
                p.mul_(1 - rate * self.weight_decay).add_(update, alpha=-length)

    def state_dict(self) -> dict[str, Tensor]:
        return self.state

    def load_state_dict(self, state: dict[str, Tensor], steps: int) -> None:
        """Take over a saved state; `steps` made before."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])
        self.steps = steps


def warm_cosine(fraction: float, step: int, warm: int = 60, floor: float = 0.03, flat: float = 0.2) -> float:
    """Rate schedule: `warm` steps up, level for the first `flat` of the budget, then a cosine down to `floor`."""
    up = min(1.0, (step + 1) / warm)
    down = max(0.0, (min(fraction, 1.0) - flat) / (1 - flat))
    return up * (floor + (1 - floor) * (0.5 + 0.5 * math.cos(math.pi * down)))


@torch.no_grad()
def update_average(average: dict[str, Tensor], parameters: dict[str, Tensor], step: int, decay: float) -> None:
    """Exponential moving average of the weights, with a shorter memory while young."""
    keep = min(decay, step / (step + 10))
    names = list(average)
    torch._foreach_lerp_([average[n] for n in names], [parameters[n].detach() for n in names], 1 - keep)
