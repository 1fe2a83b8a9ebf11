"""THE table of what can be asked for: one frozen request, each field declared with its `Option`. Free of torch.

To add an option: declare a field here, and use it where it acts. See `options` for what reads the declarations.
"""
# ruff: noqa: RUF009 (`option` makes a dataclass field)

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from magi_lite.errors import PresetError
from magi_lite.models import MODELS, REUSE, SIZE_STEP
from magi_lite.request.options import AUTO, Option, option
from magi_lite.timeline import MAX_BLEND, MAX_SECONDS, Timeline

STEPS = (4, 8, 12, 16, 32, 64)
"""Denoising steps that have a schedule: the published ones, and 4 for a quick look."""
WINDOWS = (1, 2, 4)
"""Usual windows; every divisor of the steps is legal, see `windows_of`."""
QUALITIES = ("draft", "balanced", "quality")
SHORTCUTS = ("8,16,16", "16,16,8")
MIN_SIDE, MAX_SIDE = 32, 4096
"""Pixels: two patches of the transformer, and more than any card carries."""
MAX_SEED = 2**53 - 1
"""The largest whole number that every reader of JSON keeps exactly."""
STYLES: dict[str, str] = {
    "static": "the first frames stand still",
    "dynamic": "the first frames move",
    "borders": "black borders around the picture",
    "3d": "3D model look",
    "anime": "2D anime look",
    "transition": "a cut or transition inside the clip",
    "caption": "written captions in the picture",
    "logo": "a logo in the picture",
}
"""Names allowed in `SpecialTokens.styles`, with what each stands for."""
_DTYPES = ("float32", "bf16", "fp8", "int8", "nf4")


REUSE_STEPS, REUSE_STAGE = 16, 4
"""Steps of a schedule from which reuse between them makes sense, and of a stage, whose first two are computed."""


def windows_of(steps: int) -> tuple[int, ...]:
    """Windows that a number of steps can be split over: its divisors."""
    return tuple(window for window in range(1, steps + 1) if steps % window == 0)


def _fixed(choices: tuple[str, ...], label: str, help: str, **about: Any) -> Any:
    """An option that fixes a choice of the planner."""
    about = {"planned": True, "changes": "resume", "optional": True, **about}
    return option("choice", None, choices=choices, label=label, help=help, **about)


@dataclass(frozen=True)
class SpecialTokens:
    """Learned tokens put in front of a caption. `styles` are names from `STYLES`."""

    quality: bool = option(
        "switch", True, name="quality_token", flag="--no-quality-token", inverse=True, group="what", changes="redo",
        label="Quality token", info="Asks for the best of what was learned.",
        help="leave out the learned 'high quality' token",
    )  # fmt: skip
    duration: bool = option(
        "switch", True, name="duration_token", flag="--no-duration-token", inverse=True, group="what", changes="redo",
        label="Duration token", info="Says how many seconds are left.",
        help="leave out the token that counts the seconds left",
    )  # fmt: skip
    styles: tuple[str, ...] = option(
        "names", (), flag="--style", group="what", changes="redo", choices=tuple(STYLES), meanings=STYLES,
        label="Style tokens", info="Looks that the full models learned as tokens of their own.",
        help="a style token, such as anime; may be repeated",
    )  # fmt: skip


@dataclass(frozen=True)
class Overrides:
    """What the user fixed by hand; None leaves the choice to the planner. Names are those of `Execution`."""

    device: str | None = _fixed(("cuda", "cpu"), "Runs on", "where the transformer runs")
    scheme: str | None = _fixed((*_DTYPES, "published"), "Weight precision", "number format of the weights")
    layers: str | None = _fixed(("resident", "streamed"), "Layers", "keep the layers on the card, or copy each in turn")
    kv_dtype: str | None = _fixed(
        _DTYPES[:3], "Memory of earlier seconds: precision", "number format of the KV cache"
    )  # fmt: skip
    kv_place: str | None = _fixed(
        ("device", "pinned"), "Memory of earlier seconds: location", "KV cache on the card, or in pinned RAM"
    )
    vae: str | None = _fixed(("resident", "swapped", "decoder", "cpu"), "Autoencoder", "where the autoencoder is kept")
    t5: str | None = _fixed(("float32", "bf16", "int8", "nf4"), "Text encoder as", "precision of the text encoder")
    t5_device: str | None = _fixed(("cuda", "cpu"), "Text encoder on", "where prompts are encoded")
    attention: str | None = _fixed((AUTO, "sdpa", "flash", "sage", "cudnn"), "Attention", "attention kernel")
    mlp_slice: int | None = option(
        "whole", None, least=1, most=2**31, optional=True, planned=True, changes="resume", unit="tokens",
        refusal="mlp_slice cannot be {value}; give a number of tokens, such as 4096.",
        help="tokens that the MLP computes at once; fewer need less memory",
    )  # fmt: skip
    vram_gb: float | None = option(
        "number", None, least=1e-3, most=9999, optional=True, planned=True, changes="resume", unit="GB",
        label="Card memory, GB", info="0 = use all of it.",
        refusal="A card with {value} GB of memory cannot be planned; give a number such as 12.",
        help="plan as if the card had this much memory",
    )  # fmt: skip
    """Plan as if the card had this much memory."""


@dataclass(frozen=True)
class GenerationRequest:
    """Everything that decides a video. Equal requests on one machine make equal bits.

    At most one of `image` and `video` is set. `seconds` counts the NEW seconds; None means until stopped.
    """

    timeline: Timeline = option(
        "timeline", group="what", changes="resume", label="Timeline",
        help='a file (JSON, text, SRT or OTIO), or shorthand: "[0s-2s: a cat walks] [2s-5s: it jumps]"',
    )  # fmt: skip
    seconds: int | None = option(
        "whole", 4, least=1, most=MAX_SECONDS, unit="s", optional=True, group="what", planned=True, changes="resume",
        label="Length in seconds", help="new seconds to make (default: the timeline's, or 4)",
        refusal="A video cannot have {value} seconds; ask for {least} to {most}, or for an endless one.",
    )  # fmt: skip
    width: int = option(
        "whole", 720, least=MIN_SIDE, most=MAX_SIDE, step=SIZE_STEP, unit="px", flag="", group="what", preset=True,
        label="Width", help="pixels, a multiple of 16", planned=True,
        refusal="A width of {value} is out of range; use {least} to {most}.",
    )  # fmt: skip
    height: int = option(
        "whole", 720, least=MIN_SIDE, most=MAX_SIDE, step=SIZE_STEP, unit="px", flag="", group="what", preset=True,
        label="Height", help="pixels, a multiple of 16", planned=True,
        refusal="A height of {value} is out of range; use {least} to {most}.",
    )  # fmt: skip
    image: Path | None = option("path", None, optional=True, group="what", help="start with this picture")
    video: Path | None = option("path", None, optional=True, group="what", help="continue this clip")
    fit: Literal["crop", "pad", "stretch"] = option(
        "choice", "crop", choices=("crop", "pad", "stretch"), group="what", label="Fit of the image",
        info="When its shape is not the video's.", help="how a picture fills the frame (default: crop)",
    )  # fmt: skip
    steps: int = option(
        "whole", 8, choices=STEPS, preset=True, planned=True, label="Steps", info="More is finer and slower.",
        refusal="There is no schedule of {value} steps; use {legal}.",
        help="denoising steps: 4, 8, 12, 16, 32 or 64 (default: the preset's, or the model's own)",
    )  # fmt: skip
    window: int = option(
        "whole", 4, suggestions=WINDOWS, preset=True, planned=True, label="Window",
        info="Seconds denoised together; fewer need less memory.",
        help="seconds denoised together: 1, 2 or 4 (default: the preset's)",
    )  # fmt: skip
    shortcut: Literal["8,16,16", "16,16,8"] = option(
        "choice", "8,16,16", choices=SHORTCUTS, metavar="PARTS",
        help="where 12 steps are spent: 8,16,16 (default) or 16,16,8",
    )  # fmt: skip
    nearly_clean: bool = option(
        "switch", True, flag="--lean", inverse=True, label="Extra clean pass",
        info="Steadier motion, a little slower. The demo model does without.",
        help="skip the extra pass over nearly clean seconds (faster)",
    )  # fmt: skip
    reuse: Literal["off", "low", "high"] = option(
        "choice", "off", choices=tuple(REUSE), planned=True, label="Reuse between steps",
        info="Faster at a loss, with 16 steps and more.",
        help="use a step's result again where it would hardly change: low or high (default: off)",
    )  # fmt: skip
    seed: int = option(
        "whole", 0, least=0, most=MAX_SEED, group="what", changes="redo", label="Seed (-1: a new one each time)",
        help="-1 (default) draws one; the one used is kept in the video", metavar="N",
    )  # fmt: skip
    tokens: SpecialTokens = field(default_factory=SpecialTokens)
    image_prefix: Literal["exact", "published"] = option(
        "choice", "exact", choices=("exact", "published"), hidden=True,
        help="how the first latent frame follows from the image",
    )  # fmt: skip
    """exact: the first latent frame emitted is the image's own; published: prefix plus the last step's velocity."""
    model: str = option(
        "text", "demo", suggestions=("demo", *MODELS), preset=True, planned=True, label="Model",
        info="Auto takes the best one on the disk.",
        help="4.5B-distill-fp8, demo, ... or a folder (default: the preset's)",
    )  # fmt: skip
    """A name in `MODELS`, "demo", or a folder in the published layout."""
    models_folder: Path | None = option(
        "path", None, optional=True, flag="--models", planned=True, changes="resume", local=True,
        help="the folder that holds downloaded weights (default: models)",
    )  # fmt: skip
    preset: str = option(
        "text", AUTO, planned=True, changes="resume", label="Machine profile", error=PresetError,
        info="Size, steps and window for a card.", wrong_kind="A preset has a name, not {value}; use auto.",
        help="a machine profile of presets/, or demo; auto picks one",
    )  # fmt: skip
    quality: Literal["draft", "balanced", "quality"] | None = option(
        "choice", None, choices=QUALITIES, optional=True, planned=True, label="Quality",
        help="a preset's tier (default: balanced)",
    )  # fmt: skip
    overrides: Overrides = field(default_factory=Overrides)
    out: Path | None = option(
        "path", None, optional=True, group="where", changes="resume", local=True, written=True,
        help="the video file (default: in its project folder)",
    )  # fmt: skip
    crf: int = option(
        "whole", 18, least=1, most=51, group="where", label="Compression (H.264 crf)", info="1 best, 51 smallest.",
        noun="quality (crf)", metavar="N", help="H.264 quality, 1 (best) to 51 (default: 18)",
        refusal="The quality (crf) {value} is out of range; use 1 (best) to 51 (smallest file).",
    )  # fmt: skip
    """H.264 quality: 1 best, 51 worst."""
    embed_settings: bool = option(
        "switch", True, flag="--no-metadata", inverse=True, group="where", label="Write the settings into the video",
        info="Drop it back here to restore them.", help="do not write the settings into the video",
    )  # fmt: skip
    """Write the settings into the MP4's metadata."""
    source_sha256: str | None = option(
        "text", None, optional=True, flag="", hidden=True, local=False,
        help="SHA-256 of the image or clip, filled in when the run begins",
    )  # fmt: skip
    """Of the image or clip's content; None: not known (yet). A file of other content is refused."""


PARTS: dict[str, type] = {"tokens": SpecialTokens, "overrides": Overrides}
"""The nested objects of a request."""
SPELLINGS = (
    Option(
        kind="text", name="prompt", default="", group="what", changes="resume", label="Prompt",
        help="holds in every second (in front of a timeline's own prompts)",
    ),
    Option(
        kind="whole", name="blend", least=0, most=MAX_BLEND, unit="s", group="what", changes="resume",
        help="seconds over which prompts fade into each other at a seam",
        refusal="A blend of {value} s is not possible; give 0 (no fade) to {most}.",
    ),
    Option(
        kind="switch", name="endless", default=False, group="what", planned=True, changes="resume", label="Endless",
        help="go on until stopped (Ctrl-C)",
    ),
    Option(
        kind="text", name="size", metavar="WxH", group="what", planned=True, preset=True,
        help="width and height, multiples of 16 (default: the preset's)",
    ),
)  # fmt: skip
"""Options that only help to fill the request's fields."""


def _options() -> dict[str, Option]:
    found = list(SPELLINGS)
    for part, cls in {"": GenerationRequest, **PARTS}.items():
        for item in fields(cls):
            if declared := item.metadata.get("option"):
                found.append(replace(declared, name=declared.name or item.name, field=item.name, part=part))
    return {one.name: one for one in found}


OPTIONS: dict[str, Option] = _options()
"""Every option by its keyword."""
