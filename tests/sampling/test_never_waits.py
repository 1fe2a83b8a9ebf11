"""Steps ask a card for nothing: one number read back would stop the host until the card has caught up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from magi_lite.models import SamplerSettings
from magi_lite.sampling.kv_store import KVRing
from magi_lite.sampling.results import StageDone
from magi_lite.sampling.sampler import Sampler
from quant import Fp8, Int8, convert_
from tests.sampling.conftest import base_settings, settings

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default, aten.nonzero.default,
    aten.masked_select.default, aten._unique2.default, aten.bincount.default, aten.repeat_interleave.Tensor,
}  # fmt: skip


class Watch(TorchDispatchMode):
    """Notes operations for which a host waits on a card: their result, or its shape, depends on numbers there."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        by_mask = func in (aten.index.Tensor, aten.index_put_.default) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func in WAITING or by_mask:
            self.waited.append(str(func))
        return func(*args, **(kwargs or {}))


def waits(sampler: Sampler) -> list[str]:
    """What a run waits for between stage boundaries, its first stage aside: scales may be read once."""
    found: list[str] = []
    warm = False
    steps = sampler.run()
    while True:
        with torch.inference_mode(), Watch() as watch:
            event = next(steps, None)
        if event is None:
            return found
        found += watch.waited if warm else []
        warm = warm or isinstance(event, StageDone)


def test_the_watch_sees() -> None:
    with Watch() as watch:
        x = torch.ones(3)
        bool(x.sum() > 2)
        x.max().item()
        x[x > 0]
    assert len(watch.waited) == 3


@pytest.mark.parametrize("chosen", [settings(), settings(window=1), base_settings()])
@pytest.mark.parametrize(("kind", "place"), [("float32", "device"), ("fp8", "device"), ("fp8", "pinned")])
def test_no_step_waits_for_the_card(
    chosen: SamplerSettings, kind: Any, place: Any, make: Callable[..., Sampler]
) -> None:
    sampler = make(chosen, 5, store_factory=lambda slots: KVRing(slots, dtype=kind, place=place))
    assert waits(sampler) == []


@pytest.mark.parametrize("scheme", [Fp8(), Fp8("tensor"), Int8()])
def test_nor_do_quantized_linears(scheme: Any, make: Callable[..., Sampler]) -> None:
    from magi_lite.dit.model import DiT
    from tests.sampling.conftest import CONFIG

    dit = DiT(CONFIG).requires_grad_(False)
    convert_(dit, scheme, lambda name: "layers." in name and ("qkv" in name or "mlp" in name))
    dit.mlp_slice = dit.attention_slice = 16
    assert waits(make(settings(window=2), 4, dit=dit)) == []
