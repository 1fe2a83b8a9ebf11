"""Clips that other processes film beside the training, kept on the card that trains: it learns faster than one films.

Autoencoder, transformer and decoder all learn from the same clips. The store begins small, grows while the autoencoder
is trained and is full long before the transformer has seen everything in it; what is full films no more.
"""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from magi_lite.models import CHUNK_LATENT_FRAMES
from magi_lite.vae.model import ViTVAE
from training.checkpoint import sent
from training.latents import CAPTION_TOKENS, SECONDS, Pool, encode_clips, film_clip, token_rows
from training.precision import fast_products
from training.reel import TILE, to_signed
from training.world import FRAMES
from training.world.draw import SIZE
from training.world.words import PHOTOGRAPH

FILMED_PHOTOGRAPHS = 0.25
"""Share of the clips that are photographs."""
LEARNED_PHOTOGRAPHS = 0.4
"""Share of what the autoencoder learns from, as in `Reel`."""
ENCODED_AT_ONCE = 8
ENOUGH = 64
"""Clips without which nothing is drawn: a call that goes on with a training begins with none."""
AHEAD = 2
"""Clips that wait for every process."""
WAIT = 0.2


_pictures: tuple[np.ndarray, ...] = ()
"""In a process that films: the photographs, sent once."""


def _begin(pictures: tuple[np.ndarray, ...]) -> None:
    global _pictures
    _pictures = pictures
    torch.set_num_threads(1)


def _filmed(seed: int, folder: str) -> Shown:
    clip = film_clip(seed, SECONDS, _pictures, FILMED_PHOTOGRAPHS, np.random.default_rng((seed, 13)))
    file = Path(folder, f"{seed}.npy")
    np.save(file, clip.frames.numpy())
    return Shown(file, clip.body.numpy(), clip.captions, clip.pictured)


@dataclass(frozen=True)
class Shown:
    """A `Filmed` clip as it comes from another process.

    Its frames are in a file: through the processes' pipe they would come in pieces of 64 KB, for each of which the
    thread that reads has to wait until the one that trains lets it.
    """

    frames: Path
    body: np.ndarray
    captions: tuple[str, ...]
    pictured: bool


CLIP_BYTES = SECONDS * FRAMES * SIZE * SIZE * 3
"""Of a clip's frames; its latents take a twentieth more."""


@dataclass
class Footage:
    """Clips of five seconds on a device; it films while it is entered as a context.

    Attributes:
        frames (most, 120, H, W, 3) uint8, body (most, 30, h, w) bool; tokens (most, 5, L), pictured and photograph
        (most,) bool on the processor; the first `count` of all are filmed.
    """

    pictures: tuple[np.ndarray, ...]
    most: int
    tokenizer: object
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    processes: int = 1
    seed: int = 5_000_000
    count: int = 0

    def __post_init__(self) -> None:
        h = SIZE // 8
        self.frames = torch.empty(self.most, SECONDS * FRAMES, SIZE, SIZE, 3, dtype=torch.uint8, device=self.device)
        length = SECONDS * CHUNK_LATENT_FRAMES
        self.body = torch.empty(self.most, length, h, h, dtype=torch.bool, device=self.device)
        self.tokens = torch.zeros(self.most, SECONDS, CAPTION_TOKENS, dtype=torch.long)
        self.pictured = torch.zeros(self.most, dtype=torch.bool)
        self.photograph = torch.zeros(self.most, dtype=torch.bool)
        self._latents = torch.empty(self.most, 16, length, h, h, dtype=torch.float16, device=self.device)
        self._images = torch.empty(self.most, SECONDS, 16, h, h, dtype=torch.float16, device=self.device)
        self._encoded = 0
        self._ended = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._film, name="footage", daemon=True)

    def __enter__(self) -> Footage:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def wait_for(self, clips: int) -> None:
        """Until so many clips are filmed."""
        while self.count < min(clips, self.most):
            if self._fault:
                raise self._fault
            time.sleep(WAIT)

    def renew(self) -> None:
        """As of a `Reel`: here the others film."""
        if self._fault:
            raise self._fault

    def some(self, number: int) -> Tensor:
        """The first seconds of the first clips, (number, 24, H, W, 3) uint8."""
        self.wait_for(number)
        return self.frames[:number, :FRAMES]

    def batch(self, size: int, image: bool, generator: torch.Generator) -> Tensor:
        """Half seconds (B, 3, 12, H, W), or images as (B, 3, 4, H, W) of four frames alike, in [-1, 1]."""
        self.wait_for(ENOUGH)
        there = self.photograph[: self.count]
        scenes, photographs = ((kind.nonzero()[:, 0]) for kind in (~there, there))
        share = 0 if not len(photographs) else size if not len(scenes) else round(size * LEARNED_PHOTOGRAPHS)
        picks = [
            clips[torch.randint(len(clips), (number,), generator=generator)]
            for clips, number in ((scenes, size - share), (photographs, share))
            if number
        ]
        starts = torch.randint(self.frames.shape[1] - TILE + 1, (size, 1), generator=generator)
        places = starts + (torch.zeros(4, dtype=torch.long) if image else torch.arange(TILE))
        return to_signed(self.frames[sent(torch.cat(picks), self.device)[:, None], sent(places, self.device)])

    def pool(self, vae: ViTVAE) -> Pool:
        """All that is filmed, as latents; what was encoded before is not encoded again."""
        self.wait_for(ENOUGH)
        until = self.count
        with fast_products([vae], self.device.type == "cuda"):
            for begin in range(self._encoded, until, ENCODED_AT_ONCE):
                part = slice(begin, min(begin + ENCODED_AT_ONCE, until))
                self._latents[part], self._images[part] = encode_clips(vae, self.frames[part])
        self._encoded = until
        tables = (self._latents, self._images, self.body, self.tokens, self.pictured)
        return Pool(*(table[:until] for table in tables))

    def cut(self, picks: Tensor, begins: Tensor, seconds: int) -> Tensor:
        """Some seconds of some clips: picks (N,), begins (N,) in seconds -> (N, 24 * seconds, H, W, 3) uint8."""
        places = begins[:, None] * FRAMES + torch.arange(seconds * FRAMES)
        return self.frames[sent(picks, self.device)[:, None], sent(places, self.device)]

    def _film(self) -> None:
        # processes that begin anew, for copies of this one would keep the locks that its other threads hold
        try:
            with ExitStack() as stack:
                folder = stack.enter_context(TemporaryDirectory(prefix="footage-", dir=self._in_memory()))
                crew = ProcessPoolExecutor(self.processes, get_context("spawn"), _begin, (self.pictures,))
                stack.callback(crew.shutdown, cancel_futures=True)
                self._gather(crew, folder)
        except BaseException as error:  # the thread that waits for clips says so
            self._fault = error

    def _in_memory(self) -> Path | None:
        """Where files are memory, if what waits there has room; else the usual place."""
        memory = Path("/dev/shm")
        needed = (AHEAD + 1) * self.processes * self.frames[0].numel()
        return memory if memory.is_dir() and shutil.disk_usage(memory).free > needed else None

    def _gather(self, crew: ProcessPoolExecutor, folder: str) -> None:
        seeds = itertools.count(self.seed)
        asked = {crew.submit(_filmed, next(seeds), folder) for _ in range(AHEAD * self.processes)}
        while self.count < self.most and not self._ended.is_set():
            done, asked = wait(asked, timeout=WAIT, return_when=FIRST_COMPLETED)
            for clip in list(done)[: self.most - self.count]:
                self._put(clip.result())
                asked.add(crew.submit(_filmed, next(seeds), folder))

    def _put(self, clip: Shown) -> None:
        place = self.count
        self.frames[place] = sent(torch.from_numpy(np.load(clip.frames)), self.device)
        clip.frames.unlink()
        self.body[place] = sent(torch.from_numpy(clip.body), self.device)
        self.tokens[place] = token_rows(self.tokenizer, clip.captions)
        self.pictured[place] = clip.pictured
        self.photograph[place] = PHOTOGRAPH in clip.captions[0]
        self.count += 1
