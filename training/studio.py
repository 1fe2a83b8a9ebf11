"""A loaded model that films captions: the sampler as the pipeline drives it, without projects, files and events.

Evaluation makes hundreds of short clips; here a clip is one call. Networks come from the ordinary loader and the
sampler is the ordinary one, so that what is measured is what a user gets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from magi_lite.models import PIXELS_PER_LATENT
from magi_lite.pipeline.decoding import decode_chunk, encode_pixels
from magi_lite.planner.execution import Execution
from magi_lite.request.request import SpecialTokens
from magi_lite.sampling.results import Caption, CleanChunk
from magi_lite.sampling.sampler import Sampler
from magi_lite.text.special_tokens import null_caption
from magi_lite.weights.layout import ModelFiles
from magi_lite.weights.loader import load_dit, load_special_tokens, load_text_encoder, load_vae
from training.photographs import Album


class Studio:
    """The networks of a model, on the CPU.

    Args:
        files: of `loader.open_model`. scheme: float32, bf16, fp8, int8 or nf4 for the transformer's linears.
        album: photographs that videos may start from.
    """

    def __init__(self, files: ModelFiles, scheme: str = "float32", album: Album | None = None) -> None:
        self.files, self.album = files, album or Album((), (), (), ())
        dtype = "bfloat16" if scheme == "bf16" else "float32"
        self.dit = load_dit(files, Execution(scheme=scheme, dtype=dtype))  # type: ignore[arg-type]
        self.vae = load_vae(files.vae)
        self._encoder, self._table = load_text_encoder(files), load_special_tokens(files)
        self._words: dict[str, Tensor] = {}

    def film(self, captions: Sequence[str], seed: int, **how: Any) -> np.ndarray:
        """One clip: what `seconds` yields, asked the same way, in one piece, (24 * seconds, H, W, 3) uint8."""
        return np.concatenate(list(self.seconds(captions, seed, **how)))

    @torch.inference_mode()
    def seconds(
        self,
        captions: Sequence[str],
        seed: int,
        *,
        prefix: np.ndarray | None = None,
        steps: int = 8,
        window: int = 4,
        nearly_clean: bool = True,
        size: int | None = None,
    ) -> Iterator[np.ndarray]:
        """The new seconds of a clip, each as soon as it is made.

        Args:
            captions: one per new second. prefix: (T, H, W, 3) uint8, an image (T = 1) or whole seconds to continue.
            size: width and height in pixels; None: what the autoencoder was trained on.
        Yields:
            (24, H, W, 3) uint8.
        """
        settings = replace(self.files.spec.sampler, steps=steps, window=window, nearly_clean=nearly_clean)
        latents = None if prefix is None else encode_pixels(self.vae, prefix, "cpu")
        sampler = Sampler(
            self.dit,
            settings,
            latent_size=((size or self.vae.config.video_size) // PIXELS_PER_LATENT,) * 2,
            chunks=len(captions),
            caption=lambda chunk, remaining: self._caption(captions[chunk - sampler.offset], remaining),
            null_caption=Caption(null_caption(self.dit.y_embedder.null_caption_embedding)),
            seed=seed,
            prefix=latents,
            dtype=self.dit.dtype,
        )
        for done in sampler.run():
            if isinstance(done, CleanChunk):
                yield decode_chunk(self.vae, done.latents)

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """What the autoencoder leaves of frames (T, H, W, 3) uint8."""
        with torch.inference_mode():
            return decode_chunk(self.vae, encode_pixels(self.vae, frames, "cpu"))

    def _caption(self, text: str, remaining: int | None) -> Caption:
        if text not in self._words:
            self._words[text] = self._encoder.encode([text])[0]
        most = self.files.spec.dit.caption_max_length
        return Caption(self._table.caption(self._words[text], SpecialTokens(), remaining, most))
