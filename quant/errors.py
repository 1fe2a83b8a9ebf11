"""What can go wrong in this package: one class per cause, each message one sentence that says what would work."""

from __future__ import annotations


class QuantError(Exception):
    """Something asked for cannot be quantized or loaded."""


class WeightsError(QuantError):
    """Weight files are missing, damaged or of another model; the message names tensor and file."""


class DiskError(QuantError):
    """A file cannot be written: folder, permission or space."""


class LockedError(DiskError):
    """Another process is writing there."""


class Cancelled(QuantError):
    """The caller's `cancelled` answered True; what was being made is dropped."""
