"""Which number format is faster here, float32 or bfloat16: measured on a step of the training itself.

Processors without bfloat16 units emulate it ten times slower; those with them are twice as fast in it. Only products of
linears are rounded: norms, attention, the residual stream and the sums of the products stay in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


class HalfProduct(torch.autograd.Function):
    """A linear's product in bfloat16 and its sums in float32."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[no-untyped-def]
        x, weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        product = torch.nn.functional.linear(x, weight).float()
        return product if bias is None else product + bias

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        bias = gradient.flatten(0, -2).sum(0) if ctx.biased else None
        gradient = gradient.bfloat16()
        return (gradient @ weight).float(), (gradient.flatten(0, -2).t() @ x.flatten(0, -2)).float(), bias


@contextmanager
def half_products(model: nn.Module) -> Iterator[None]:
    """Let the linears in a model's blocks multiply in bfloat16 while the context lasts."""
    changed = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "blocks." in n]
    for module in changed:
        module.forward = lambda x, module=module: HalfProduct.apply(x, module.weight, module.bias)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in changed:
            del module.forward


@contextmanager
def fast_products(models: Sequence[nn.Module], half: bool) -> Iterator[None]:
    """Products in bfloat16 while the context lasts, if they are to be: all of a card's, a processor's in the blocks."""
    device = next(models[0].parameters()).device
    with ExitStack() as stack:
        if half and device.type == "cpu":
            for model in models:
                stack.enter_context(half_products(model))
        elif half:  # no cache: it would keep the weights of the first step
            stack.enter_context(torch.autocast(device.type, torch.bfloat16, cache_enabled=False))
        yield


def seconds_of(step: Callable[[], object], times: int = 2) -> float:
    """The fastest of some calls, in seconds of this process's own time: other programs do not count."""
    step()
    best = float("inf")
    for _ in range(times):
        began = time.process_time()
        step()
        best = min(best, time.process_time() - began)
    return best


def half_is_faster(model: nn.Module, step: Callable[[], object]) -> tuple[bool, dict[str, float]]:
    """Time a training step in both formats; whether bfloat16 wins, and the figures for the log.

    Returns:
        The choice; seconds of a step in each format, and GFLOP/s of a matrix product of 1024 in each. On a card it is
        bfloat16, and nothing is timed.
    """
    if next(model.parameters()).is_cuda:
        return True, {}
    facts = {"float32_step_seconds": seconds_of(step)}
    with half_products(model):
        facts["bfloat16_step_seconds"] = seconds_of(step)
    model.zero_grad(set_to_none=True)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a = torch.randn(1024, 1024).to(dtype)
        facts[f"{name}_gflops"] = round(2 * 1024**3 / seconds_of(lambda a=a: a @ a) / 1e9, 1)
    facts = {name: round(value, 3) for name, value in facts.items()}
    return facts["bfloat16_step_seconds"] < facts["float32_step_seconds"], facts
