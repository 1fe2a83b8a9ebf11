"""The one error of this package: something asked for cannot be quantized or loaded."""

from __future__ import annotations


class QuantError(Exception):
    """One sentence: what was wrong and what would work."""
