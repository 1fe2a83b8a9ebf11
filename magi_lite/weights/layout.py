"""Where the published repository keeps things, and what of it is on this disk.

    ROOT/ckpt/magi/<family>/<inference_weight...>/   transformer: safetensors, maybe config.json here or in the family
    ROOT/ckpt/vae/                                   autoencoder, diffusers layout
    ROOT/ckpt/t5/<name>/                             text encoder, transformers layout
    ROOT/special_tokens.npz                          learned prompt tokens

Downloads were made by many tools, so `ckpt/` may be absent, weights may lie in the family's folder itself, all may lie
in `downloads/` as in an official checkout, or in a cache of the hub; any folder may be a link. What is there is taken;
when nothing fits, the error says what was looked for and where. No torch: planner and UI read it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from magi_lite.config_files import Part, read_json
from magi_lite.errors import CheckpointError, InputError
from magi_lite.files import is_folder, storage_errors
from magi_lite.models import MODELS, DiTConfig, Guidance, ModelSpec, SamplerSettings, T5Shape, VAEConfig
from magi_lite.resources import home_folder, presets_folder
from magi_lite.sentences import shown
from magi_lite.weights.text_files import check_text_files, conversion_bytes
from quant.schemes import detect, quantized_names
from quant.storage.files import read_small
from quant.storage.headers import check_start_of
from quant.storage.shards import Checkpoint, has_weights, is_file_name

DEFAULT_MODELS_FOLDER = home_folder() / "models"
"""Where weights are looked for and downloaded to when no folder is named."""
DEMO_FOLDER = presets_folder() / "demo"
"""The small model that is shipped with the program."""
SPECIAL_TOKEN_FILES = ("special_tokens.npz", "special_tokens.safetensors")
SPECIAL_TOKENS_SHA256 = "b54bc664d5f4a722dfd8bb22201c025df61f22acddc07c0a2529d7b5cd6be5a7"
"""The published special_tokens.npz (3,343,124 bytes); a file of the published width must be this one."""
CACHE_FOLDER = "models--sand-ai--MAGI-1"
"""What huggingface_hub's cache calls the published repository."""
MANIFEST = "quantization.json"
"""In a folder that `python -m quant` made."""
_VAE_PLACES = ("ckpt/vae", "vae", "downloads/vae")
_TEXT_PLACES = ("ckpt/t5", "t5", "t5_pretrained", "downloads/t5_pretrained", "downloads/t5")
_NO_TRANSFORMER = ("vae", "t5", "t5_pretrained")
_OTHER_RELEASE = re.compile(r"magi[-_ ]?1\.1", re.IGNORECASE)


class SpecialTokensMissing(CheckpointError):
    """The one small file that a download of the published weights does not bring.

    Attributes:
        root: where it is to be put.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        super().__init__(
            f"There is no special-token file in {root}: looked for {' and '.join(SPECIAL_TOKEN_FILES)}; it is not "
            "among the published weights, so fetch it (3 MB) with: python -m magi_lite download special-tokens "
            f"--models {root}, or copy example/assets/special_tokens.npz of the official source code there."
        )


@dataclass(frozen=True)
class ModelFiles:
    """A complete model on disk."""

    spec: ModelSpec
    """What its configuration files and the names of its tensors say of it."""
    weights: Path
    """Folder with the transformer's safetensors."""
    vae: Path
    text_encoder: Path
    special_tokens: Path
    trained: bool = True
    """False: random weights made from a seed, for want of the shipped demo model."""


@storage_errors()
def find_model(name_or_folder: str | Path, models_folder: Path | None = None) -> ModelFiles:
    """Files of a published model by name, or of whatever model a folder holds.

    Args:
        name_or_folder: a name in `models.MODELS`, or a root, family or weights folder of the published layout.
        models_folder: where named models are looked for; None: `DEFAULT_MODELS_FOLDER`.

    Names, sizes and headers of all files are checked; which tensors they must hold: `contents.check_contents`.

    Raises:
        InputError: neither a known name nor a folder.
        CheckpointError: something is not there, cut short or something else; says what, and what was looked for.
        SpecialTokensMissing: all but the one small file is there.
    """
    family = MODELS.get(str(name_or_folder))
    if family is not None:
        root = model_root(Path(models_folder) if models_folder is not None else DEFAULT_MODELS_FOLDER)
        return _complete(family_weights(root, family), root, family)
    folder = Path(name_or_folder)
    if not is_folder(folder):
        names = ", ".join(("demo", *MODELS))
        raise InputError(f"There is no model '{name_or_folder}': it is neither a folder nor one of {names}.")
    weights = _only_weights(model_root(folder))
    return _complete(weights, _root_of(weights), _family_of(weights))


def _complete(weights: Path, root: Path, family: ModelSpec | None) -> ModelFiles:
    vae, text_encoder = vae_folder(root), text_folder(root)
    spec = read_spec(weights, vae, text_encoder, family)
    with storage_errors():
        Checkpoint.open(vae)
    check_text_files(text_encoder)
    spec = replace(spec, text_conversion=conversion_bytes(text_encoder))
    tokens = special_tokens_file(root)  # last: where only they are missing, they are fetched
    with storage_errors():
        check_start_of(tokens)
    return ModelFiles(spec, weights, vae, text_encoder, tokens)


def read_spec(weights: Path, vae: Path, text_encoder: Path, family: ModelSpec | None) -> ModelSpec:
    """What the files of a model say; `family`: the published one it is named after, if any.

    Raises:
        CheckpointError: a configuration is missing or cannot be used.
    """
    config = read_config(weights)
    if config is not None:
        dit, sampler = DiTConfig.from_published(config["model_config"]), sampler_settings(config)
    elif family is not None:
        dit, sampler = family.dit, family.sampler
    else:
        raise CheckpointError(
            f"No config.json lies in {weights} or {weights.parent}; put the configuration of the model there."
        )
    with storage_errors():
        names = frozenset(Checkpoint.open(weights).tensors)
    stored = detect(names)
    return ModelSpec(
        name=family.name if family else weights.parent.name,
        dit=dit,
        vae=vae_config(vae),
        t5=text_shape(text_encoder),
        sampler=sampler,
        stored=stored,
        stored_linears=None if stored is None else quantized_names(names),
    )


def scheme_of(names: Iterable[str]) -> str | None:
    """How a checkpoint with these tensors is quantized: published, fp8, int8, nf4, or None."""
    scheme = detect(names)
    return None if scheme is None else scheme.name


# --- configuration files -------------------------------------------------------------------------------------------


def read_config(weights: Path) -> dict[str, Any] | None:
    """The published configuration beside a weights folder: in it, or in the family's folder; None when there is none.

    Raises:
        CheckpointError: a file that is there cannot be used.
    """
    for folder in (weights, weights.parent):
        path = folder / "config.json"
        if path.is_file():
            return parse_config(path)
    return None


def parse_config(path: Path) -> dict[str, Any]:
    """A published configuration: model_config, runtime_config and engine_config, each value of its kind.

    Raises:
        CheckpointError: the file cannot be read or used; names the value.
    """
    what = "a model configuration (JSON with model_config, runtime_config, engine_config)"
    config = read_json(path, what)
    if "model_config" not in config:
        raise CheckpointError(f"{path} is not {what}; download it again.")
    DiTConfig.from_published(config["model_config"], f"The model_config in {path}")
    sampler_settings(config, f" in {path}")
    is_fp8(config, f" in {path}")
    return config


def is_fp8(config: dict[str, Any], place: str = "") -> bool:
    """Whether a configuration is of published FP8 weights."""
    return Part(config.get("engine_config", {}), f"The engine_config{place}").flag("fp8_quant", False)


def sampler_settings(config: dict[str, Any], place: str = "") -> SamplerSettings:
    """How a published configuration samples; `place` follows a part's name in messages.

    Raises:
        CheckpointError: a value is of the wrong kind.
    """
    runtime = Part(config.get("runtime_config", {}), f"The runtime_config{place}")
    engine = Part(config.get("engine_config", {}), f"The engine_config{place}")
    default, passes = SamplerSettings(), runtime.one_of("cfg_number", (1, 3), 1)
    distilled = engine.flag("distill", passes == 1)
    return SamplerSettings(
        steps=runtime.whole("num_steps", default.steps),
        window=runtime.whole("window_size", default.window),
        shortcut=engine.one_of("shortcut_mode", ("", "8,16,16", "16,16,8"), default.shortcut),
        distilled=distilled,
        guidance=_guidance(runtime) if passes == 3 else None,
        nearly_clean=distilled,
        nearly_clean_threshold=engine.number("distill_nearly_clean_chunk_threshold", default.nearly_clean_threshold),
        noise_to_clean_ranges=runtime.wholes("noise2clean_kvrange", default.noise_to_clean_ranges),
        clean_range=runtime.whole("clean_chunk_kvrange", default.clean_range, least=-1),
        clean_t=runtime.number("clean_t", default.clean_t),
        chunk_width=runtime.whole("chunk_width", default.chunk_width),
    )


def _guidance(runtime: Part) -> Guidance:
    """The scales of three-pass guidance, as many as there are ranges of t."""
    usual = Guidance()
    found = Guidance(
        runtime.numbers("cfg_t_range", usual.t_ranges),
        runtime.numbers("prev_chunk_scales", usual.prev_scales),
        runtime.numbers("text_scales", usual.text_scales),
    )
    if not len(found.t_ranges) == len(found.prev_scales) == len(found.text_scales) > 0:
        raise CheckpointError(
            f"{runtime.place} has cfg_t_range, prev_chunk_scales and text_scales of different lengths, or none; "
            "use the configuration as published."
        )
    return found


def vae_config(folder: Path) -> VAEConfig:
    """The shape of an autoencoder: `ddconfig` of its config.json.

    Raises:
        CheckpointError: the file cannot be read or used.
    """
    path = Path(folder) / "config.json"
    what = "an autoencoder's configuration (JSON with a ddconfig)"
    content = read_json(path, what)
    if "ddconfig" not in content:
        raise CheckpointError(f"{path} is not {what}; download it again.")
    return VAEConfig.from_published(content["ddconfig"], f"The ddconfig in {path}")


def text_shape(folder: Path) -> T5Shape:
    """The shape of a text encoder in transformers layout.

    Raises:
        CheckpointError: its config.json cannot be read or used.
    """
    path = Path(folder) / "config.json"
    content = read_json(path, "a T5 configuration")
    kind = content.get("model_type", "t5")
    if kind != "t5":
        what = shown(kind).strip("'")
        raise CheckpointError(f"{path} is of a {what} model where T5 is needed; put a T5 encoder there.")
    return T5Shape.from_published(content, str(path))


# --- where things lie ----------------------------------------------------------------------------------------------


def model_root(folder: Path) -> Path:
    """The folder of the published layout that a folder stands for: itself, or the snapshot in a cache of the hub.

    Such a cache holds `models--sand-ai--MAGI-1/snapshots/COMMIT` and, in `refs/main`, which commit is the newest.
    """
    for cache in (folder, folder / CACHE_FOLDER, folder / "hub" / CACHE_FOLDER):
        snapshots = cache / "snapshots"
        if cache.name != CACHE_FOLDER or not is_folder(snapshots):
            continue
        try:
            commit = read_small(cache / "refs" / "main").decode().strip()
        except (OSError, ValueError):
            commit = ""
        if is_file_name(commit) and (snapshots / commit).is_dir():
            return snapshots / commit
        there = [place for place in snapshots.iterdir() if place.is_dir()]
        if there:
            return max(there, key=lambda place: place.stat().st_mtime)
    return folder


def weight_candidates(root: Path, family: ModelSpec) -> list[Path]:
    """Where the transformer of a family may lie under a root, the published place first."""
    inside = [Path(family.folder) / family.weights_folder, Path(family.folder)]
    bases = (root / "ckpt" / "magi", root / "magi", root, root / "downloads")
    return [base / place for base in bases for place in inside]


def family_weights(root: Path, family: ModelSpec) -> Path:
    """Where the transformer of a family lies under a root; raises CheckpointError."""
    candidates = weight_candidates(root, family)
    for folder in candidates:
        if has_weights(folder):
            return folder
    looked = ", ".join(str(folder.relative_to(root)) for folder in candidates)
    raise CheckpointError(
        f"There are no weights of {family.name} in {root} (looked for safetensors in {looked}); "
        f"download them with: python -m magi_lite download {family.name}"
    )


def _only_weights(folder: Path) -> Path:
    """The one weights folder at, or below, a folder that the user named."""
    if has_weights(folder):
        return folder
    below = [folder, folder / "ckpt" / "magi", folder / "magi", folder / "downloads"]
    inner = [child for base in below if base.is_dir() for child in sorted(base.iterdir()) if child.is_dir()]
    inner += [
        child for family in inner for child in sorted(family.iterdir()) if child.name.startswith("inference_weight")
    ]
    found = [child for child in dict.fromkeys(inner) if child.name not in _NO_TRANSFORMER and has_weights(child)]
    originals = [child for child in found if not (child / MANIFEST).is_file()]
    if len(originals) == 1:  # beside it copies of it, converted offline: who means one of them names it
        found = originals
    if not found:
        raise CheckpointError(
            f"There are no transformer weights in {folder}: looked for safetensors in it, in inference_weight* below "
            "it and in ckpt/magi/*/inference_weight*; name the folder that holds them."
        )
    if len(found) > 1:
        places = ", ".join(str(child.relative_to(folder)) for child in found)
        raise CheckpointError(f"{folder} holds several models ({places}); name one of these folders.")
    return found[0]


def _family_of(weights: Path) -> ModelSpec | None:
    """The published family that a folder is named after, when its name says so."""
    if any(_OTHER_RELEASE.fullmatch(part) for part in weights.parts):
        return None  # its folders have the names of MAGI-1's
    for family in MODELS.values():
        if family.folder in (weights.name, weights.parent.name):
            return family
    return None


def _root_of(weights: Path) -> Path:
    """The nearest folder above the weights that has an autoencoder in a published place.

    First by the path as it was given, on which folders may be links to another disk, then by the real one.
    """
    for folder in (*weights.absolute().parents, *weights.resolve().parents):
        if any((folder / place).is_dir() for place in _VAE_PLACES):
            return folder
    return weights.parent


def vae_folder(root: Path) -> Path:
    """Where the autoencoder lies under a root; raises CheckpointError."""
    for place in _VAE_PLACES:
        if (root / place / "config.json").is_file():
            return root / place
    raise CheckpointError(
        f"There is no autoencoder in {root}: looked for config.json in {_listed(_VAE_PLACES)}; "
        "download the model again."
    )


def text_folder(root: Path) -> Path:
    """Where the text encoder lies under a root; raises CheckpointError."""
    for base in (root / place for place in _TEXT_PLACES):
        if not base.is_dir():
            continue
        for folder in (base / "t5-v1_1-xxl", base, *sorted(base.iterdir())):
            if (folder / "config.json").is_file():
                return folder
    looked = _listed(tuple(f"{place}/*" for place in _TEXT_PLACES))
    raise CheckpointError(
        f"There is no text encoder in {root}: looked for config.json in {looked}; download the model again."
    )


def _listed(places: tuple[str, ...]) -> str:
    return f"{', '.join(places[:-1])} and {places[-1]}"


def special_tokens_file(root: Path) -> Path:
    """Where the learned prompt tokens lie under a root, or in the default models folder.

    Raises:
        SpecialTokensMissing: they do not.
    """
    places = [root, root / "ckpt", root / "example" / "assets", root / "downloads"]
    whole = root.parent if root.name in ("ckpt", "downloads") else root  # of an official checkout
    places += [whole, whole / "example" / "assets"]
    for name in SPECIAL_TOKEN_FILES:
        for folder in (*places, DEFAULT_MODELS_FOLDER):
            if (folder / name).is_file():
                return folder / name
    raise SpecialTokensMissing(whole)
