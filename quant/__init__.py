"""Quantized linears for any `torch.nn.Module`: FP8, INT8, NF4 and the published static-FP8 form.

`convert_` swaps linears in place by a predicate and reports what it did; `python -m quant` does the same to files.
Names are imported on first use, so `quant.schemes` stays usable without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quant.advice import slow_paths
    from quant.calibrate import Recorder, Recording, calibrate_, read_recording
    from quant.convert import Report, Swap, assign_, check_, convert_, set_backend_
    from quant.errors import QuantError
    from quant.folder import convert_folder
    from quant.fp8 import faster_row_scales, set_row_scales_
    from quant.linear import QuantizedInput, QuantizedLinear, shared_forward
    from quant.manifest import Manifest, load_converted_, read_manifest
    from quant.schemes import (
        NF4,
        SCHEMES,
        Fp8,
        Int8,
        Published,
        Scheme,
        detect,
        scheme_from_dict,
        scheme_named,
    )
    from quant.select import Selection

_HOMES = {
    "quant.advice": ("slow_paths",),
    "quant.calibrate": ("Recorder", "Recording", "calibrate_", "read_recording"),
    "quant.convert": ("Report", "Swap", "assign_", "check_", "convert_", "set_backend_"),
    "quant.errors": ("QuantError",),
    "quant.fp8": ("faster_row_scales", "set_row_scales_"),
    "quant.folder": ("convert_folder",),
    "quant.linear": ("QuantizedInput", "QuantizedLinear", "shared_forward"),
    "quant.manifest": ("Manifest", "load_converted_", "read_manifest"),
    "quant.schemes": (
        "NF4",
        "SCHEMES",
        "Fp8",
        "Int8",
        "Published",
        "Scheme",
        "detect",
        "scheme_from_dict",
        "scheme_named",
    ),
    "quant.select": ("Selection",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = [
    "NF4",
    "SCHEMES",
    "Fp8",
    "Int8",
    "Manifest",
    "Published",
    "QuantError",
    "QuantizedInput",
    "QuantizedLinear",
    "Recorder",
    "Recording",
    "Report",
    "Scheme",
    "Selection",
    "Swap",
    "assign_",
    "calibrate_",
    "check_",
    "convert_",
    "convert_folder",
    "detect",
    "faster_row_scales",
    "load_converted_",
    "read_manifest",
    "read_recording",
    "scheme_from_dict",
    "scheme_named",
    "set_backend_",
    "set_row_scales_",
    "shared_forward",
    "slow_paths",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'quant' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
