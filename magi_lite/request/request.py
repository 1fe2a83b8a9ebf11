"""Everything that decides a video: one frozen request, free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from magi_lite.timeline import Timeline

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


@dataclass(frozen=True)
class SpecialTokens:
    """Learned tokens put in front of a caption. `styles` are names from `STYLES`."""

    quality: bool = True
    duration: bool = True
    styles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Overrides:
    """What the user fixed by hand; None leaves the choice to the planner. Names are those of `Execution`."""

    device: str | None = None
    scheme: str | None = None
    layers: str | None = None
    kv_dtype: str | None = None
    kv_place: str | None = None
    vae: str | None = None
    t5: str | None = None
    t5_device: str | None = None
    attention: str | None = None
    mlp_slice: int | None = None
    vram_gb: float | None = None
    """Plan as if the card had this much memory."""


@dataclass(frozen=True)
class GenerationRequest:
    """Everything that decides a video. Equal requests on one machine make equal bits.

    At most one of `image` and `video` is set. `seconds` counts the NEW seconds; None means until stopped.
    """

    timeline: Timeline
    seconds: int | None = 4
    width: int = 720
    height: int = 720
    image: Path | None = None
    video: Path | None = None
    fit: Literal["crop", "pad", "stretch"] = "crop"
    steps: int = 8
    window: int = 4
    shortcut: Literal["8,16,16", "16,16,8"] = "8,16,16"
    nearly_clean: bool = True
    seed: int = 0
    tokens: SpecialTokens = field(default_factory=SpecialTokens)
    image_prefix: Literal["exact", "published"] = "exact"
    """exact: the first latent frame emitted is the image's own; published: prefix plus the last step's velocity."""
    model: str = "demo"
    """A name in `MODELS`, "demo", or a folder in the published layout."""
    models_folder: Path | None = None
    preset: str = "auto"
    quality: Literal["draft", "balanced", "quality"] | None = None
    overrides: Overrides = field(default_factory=Overrides)
    out: Path | None = None
    crf: int = 18
    """H.264 quality: 1 best, 51 worst."""
    embed_settings: bool = True
    """Write the settings into the MP4's metadata."""
