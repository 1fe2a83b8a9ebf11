"""NaN and infinite numbers, which damaged weights make: looked for before anything is made of them, or kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magi_lite.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN and no infinite number in a tensor; takes no memory, as a mask would."""
    return not tensor.numel() or all(bool(end.isfinite()) for end in tensor.aminmax())


def check_finite(made: Tensor, what: str) -> None:
    """Refuse what a network made of damaged weights, before anything is made of it, or kept.

    Args:
        what: the network, as a sentence begins with it.

    Raises:
        CheckpointError: there is a NaN or an infinite number.
    """
    if not is_finite(made):
        raise CheckpointError(
            f"{what} gave NaN or infinite numbers, so its weights are damaged or do not bear this weight precision; "
            "download the model again, or choose another precision."
        )
