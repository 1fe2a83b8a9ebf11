"""A model by its name: its files and all that is known of it, without torch, so that plans and pages need none."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from magi_lite.errors import CheckpointError, MagiLiteError, OutputError
from magi_lite.weights.layout import DEFAULT_MODELS_FOLDER, DEMO_FOLDER, ModelFiles, find_model
from quant import QuantError, read_manifest
from quant.storage.shards import has_weights

UNTRAINED = "demo-untrained-1"
"""Folder of the random weights; the number goes up when their make changes."""
DEMO_WEIGHTS = Path("ckpt/magi/demo/inference_weight.distill")
"""Where the demo model's transformer lies in its folder."""


def open_model(name_or_folder: str | Path, models_folder: Path | None = None) -> ModelFiles:
    """The files of a model: a published name, "demo", or a folder in the published layout.

    "demo" is the small model shipped in presets/demo; without it, tiny random weights are made from a seed in a cache
    folder and labelled `trained=False`. They go the same way through the loader as any others.

    Raises:
        InputError: no such name or folder.
        CheckpointError: a part is missing; says what was looked for and where.
    """
    if str(name_or_folder) == "demo":
        return _demo(models_folder)
    files = find_model(name_or_folder, models_folder)
    if files.spec.stored is None:
        return files
    try:
        manifest = read_manifest(files.weights)
    except QuantError as error:
        raise CheckpointError(str(error)) from error
    if manifest is None:
        return files
    return replace(files, spec=replace(files.spec, stored=manifest.scheme))  # names do not tell its settings


def _demo(models_folder: Path | None = None) -> ModelFiles:
    """The shipped demo model or, without it, untrained weights.

    They are made in `models_folder` (None: the default one), or in a temporary folder where that cannot be written.

    Raises:
        MagiLiteError: neither can be written.
    """
    if has_weights(DEMO_FOLDER / DEMO_WEIGHTS):
        return _called_demo(find_model(DEMO_FOLDER / DEMO_WEIGHTS))
    root = _untrained_root(Path(models_folder) if models_folder is not None else DEFAULT_MODELS_FOLDER)
    return replace(_called_demo(find_model(root)), trained=False)


def _called_demo(files: ModelFiles) -> ModelFiles:
    return replace(files, spec=replace(files.spec, name="demo"))


def _untrained_root(models_folder: Path) -> Path:
    for base in (models_folder, Path(tempfile.gettempdir()) / "magi_lite"):
        root = base / UNTRAINED
        if has_weights(root / DEMO_WEIGHTS):
            return root
        try:
            base.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=base, prefix=f".{UNTRAINED}-"))
        except OSError:
            continue
        try:
            from magi_lite.weights.demo import make_untrained

            make_untrained(temporary)
            temporary.replace(root)
        except (OSError, OutputError):
            if not has_weights(root / DEMO_WEIGHTS):  # else another process was faster
                continue
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return root
    raise MagiLiteError(f"The demo model cannot be written to {models_folder} or a temporary folder; free some space.")
