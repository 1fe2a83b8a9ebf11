"""Files that are damaged at random: media, runs, weights and settings are read right or refused in one sentence.

Each damage is made of a seed, and each case runs in a child with limits on time and memory, so that a decoder's crash
is a case that fails. A longer run by hand, 2,000 cases of each kind from seed 7000 on (some 20 minutes):
`python -m tests.bad_input.test_fuzz_files 2000 7000 > benchmarks/results/fuzz_files.json`; names of kinds behind the
numbers run these alone.
"""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from PIL import Image

from magi_lite.errors import MagiLiteError
from magi_lite.library import read_settings, read_timeline
from magi_lite.pipeline.export import exporting
from magi_lite.project import Project
from magi_lite.request.json import request_to_json
from magi_lite.ui.library import Library
from magi_lite.ui.uploads import look_at
from magi_lite.video.clips import load_tail, read_whole
from magi_lite.video.export import open_export
from magi_lite.video.images import load_image
from magi_lite.video.sound import Sound
from magi_lite.video.writer import VideoWriter
from magi_lite.weights.contents import check_contents
from magi_lite.weights.loader import load_special_tokens
from magi_lite.weights.opening import open_model
from magi_lite.weights.t5 import load_tokenizer
from tests import memory
from tests.project.conftest import SIZE, run

BATCH = 25
"""Cases of one child."""
MOST_SECONDS = 30
"""Processor time of one case, on a machine that does other work as well."""
MOST_MEGABYTES = 300
"""By which one case may raise a child's peak."""
TINY = (16, 16)


# --- what is damaged


def encoded(container: str, codec: str, pixels: str, frames: int = 30, **options: str) -> bytes:
    """A small clip with a sound."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 48, pixels, options
        names = {"ogg": "libvorbis", "webm": "libopus", "mpegts": "mp2", "avi": "mp3", "flv": "mp3", "mpeg": "mp2"}
        sound = output.add_stream(names.get(container, "aac"), rate=48000, layout="stereo")
        kind = sound.codec_context.format.name
        for number in range(frames):
            y, x = np.mgrid[:48, :64]
            waves = [127 + 90 * np.sin((x + 3 * number) / (5 + c) + y / 7) for c in range(3)]
            frame = av.VideoFrame.from_ndarray(np.stack(waves, -1).astype(np.uint8), format="rgb24")
            frame.pts = number
            output.mux(stream.encode(frame))
        tone = 0.3 * np.sin(np.arange(48000 * frames // 25) / 20)
        values = np.stack([tone, tone])
        values = values if kind.startswith("flt") else values * 32767
        data = values.astype({"flt": np.float32, "s16": np.int16, "s32": np.int32}[kind.removesuffix("p")])
        block = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(data if kind.endswith("p") else data.T.reshape(1, -1)), kind, "stereo"
        )
        block.rate, block.pts = 48000, 0
        output.mux(sound.encode(block))
        output.mux(stream.encode(None))
        output.mux(sound.encode(None))
    return buffer.getvalue()


def picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    y, x = np.mgrid[:60, :80]
    values = np.stack([127 + 120 * np.sin(x / (9 + 3 * k) + y / 17) for k in range(4)], -1).astype(np.uint8)
    if mode == "F":
        image = Image.fromarray((values[..., 0] / 255).astype(np.float32))
    elif mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    elif mode == "P":
        image = Image.fromarray(values[..., :3]).quantize(60)
    else:
        image = Image.fromarray(values, "RGBA").convert(mode)
    if options.get("save_all"):
        options["append_images"] = [image.rotate(20 * n) for n in range(1, 6)]
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def growing(settings: dict[str, Any]) -> bytes:
    """A video of our own, with its settings."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        with VideoWriter(path, (64, 64), settings=settings) as writer:
            for value in (50, 90):
                writer.append(np.full((24, 64, 64, 3), value, np.uint8))
        return path.read_bytes()


CLIPS: dict[str, Callable[[], bytes]] = {
    "a.mp4": lambda: encoded("mp4", "libx264", "yuv420p", bf="2"),
    "fragments.mp4": lambda: growing(a_request()),
    "a.mov": lambda: encoded("mov", "prores_ks", "yuv422p10le", frames=6),
    "a.webm": lambda: encoded("webm", "libvpx-vp9", "yuva420p", deadline="realtime"),
    "a.mkv": lambda: encoded("matroska", "ffv1", "yuv420p", frames=8),
    "a.avi": lambda: encoded("avi", "mpeg4", "yuv420p"),
    "a.ts": lambda: encoded("mpegts", "mpeg2video", "yuv420p", flags="+ildct+ilme"),
    "a.mpg": lambda: encoded("mpeg", "mpeg2video", "yuv420p"),
    "a.flv": lambda: encoded("flv", "libx264", "yuv420p"),
    "hevc.mp4": lambda: encoded("mp4", "libx265", "yuv420p10le", frames=10, **{"x265-params": "log-level=none"}),
    "a.gif": lambda: picture("GIF", save_all=True, duration=90),
    "anim.webp": lambda: picture("WEBP", "RGBA", save_all=True, duration=90),
    "anim.png": lambda: picture("PNG", "RGBA", save_all=True, duration=90),
    "anim.avif": lambda: picture("AVIF", save_all=True, duration=90, speed=10),
}
PICTURES: dict[str, Callable[[], bytes]] = {
    "a.png": lambda: picture("PNG", "RGBA"),
    "palette.png": lambda: picture("PNG", "P", transparency=bytes(range(60))),
    "grey.png": lambda: picture("PNG", "I;16"),
    "a.jpg": lambda: picture("JPEG", quality=90),
    "passes.jpg": lambda: picture("JPEG", progressive=True),
    "inks.jpg": lambda: picture("JPEG", "CMYK"),
    "a.webp": lambda: picture("WEBP", "RGBA"),
    "lossless.webp": lambda: picture("WEBP", lossless=True),
    "a.avif": lambda: picture("AVIF", "RGBA", speed=10),
    "a.gif": lambda: picture("GIF"),
    "a.bmp": lambda: picture("BMP"),
    "a.ico": lambda: picture("ICO", "RGBA"),
    "a.jp2": lambda: picture("JPEG2000"),
    "a.ppm": lambda: picture("PPM"),
    "a.tga": lambda: picture("TGA", rle=True),
    **{f"{way}.tif": functools.partial(picture, "TIFF", compression=way) for way in ("tiff_lzw", "jpeg", "packbits")},
    "floats.tif": lambda: picture("TIFF", "F", compression="tiff_adobe_deflate"),
    "deep.tif": lambda: picture("TIFF", "I;16"),
}


def a_request() -> dict[str, Any]:
    from magi_lite.request.build import build

    return request_to_json(build(prompt="a ball", timeline="[0s-1s: a] [1s-2s cut: b]", preset="demo", seed=1))


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """Some bytes otherwise: what a bad disk, a cut download or an attacker leaves."""
    out = bytearray(data)
    for _ in range(random.integers(1, 4)):
        if not out:
            break
        # half of all damage is in the header, where sizes and tables are
        at = int(random.integers(min(len(out), 600) if random.random() < 0.5 else len(out)))
        size = int(random.integers(1, 1 + min(len(out), 2 ** int(random.integers(1, 12)))))
        match int(random.integers(9)):
            case 0:
                out[at] ^= 1 << int(random.integers(8))
            case 1:
                del out[at:]
            case 2:
                out[at : at + size] = bytes(len(out[at : at + size]))
            case 3:
                out[at : at + size] = random.bytes(len(out[at : at + size]))
            case 4:
                del out[at : at + size]
            case 5:
                out[at:at] = out[at : at + size]
            case 6:
                out[at:at] = random.bytes(size)
            case 7:  # a number at its limits
                out[at : at + 4] = [b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4), b"\0\0\0\1"][int(random.integers(4))]
            case _:
                other = int(random.integers(len(out)))
                out[at : at + size] = out[other : other + size]
    return bytes(out)


# --- what is done with it


def refused(work: Callable[[], object]) -> bool:
    """Whether some work is refused in one sentence; anything else that it raises is a program error."""
    try:
        work()
    except MagiLiteError as error:
        text = str(error)
        assert text.endswith(".") and "\n" not in text and len(text) < 700, f"no sentence: {text!r}"
        return True
    return False


def sound_of(path: Path, folder: Path) -> None:
    with open_export("ffv1", folder / "out.mkv", (64, 48), sound=[Sound(path)], overwrite=True) as writer:
        for _ in range(12):
            writer.write(np.zeros((48, 64, 3), np.float32))


def clip(folder: Path, random: np.random.Generator) -> str:
    name = [*CLIPS][int(random.integers(len(CLIPS)))]
    path = folder / name
    path.write_bytes(damaged(made(CLIPS[name]), random))
    refused(lambda: look_at(path, name))

    def tail() -> None:
        pixels = load_tail(path, TINY, frames=12)
        assert 1 <= len(pixels) <= 12 and pixels.shape[1:] == (16, 16, 3) and pixels.dtype == np.uint8

    def whole() -> None:
        found = read_whole(path, TINY, "crop")
        assert sum(1 for _ in found.frames) == found.count > 0

    refused(tail)
    refused(whole)
    refused(lambda: sound_of(path, folder))
    return name


def still(folder: Path, random: np.random.Generator) -> str:
    name = [*PICTURES][int(random.integers(len(PICTURES)))]
    path = folder / name
    path.write_bytes(damaged(made(PICTURES[name]), random))
    refused(lambda: look_at(path, name))

    def read() -> None:
        pixels = load_image(path, TINY)
        assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8

    refused(read)
    return name


def a_run(folder: Path, random: np.random.Generator) -> str:
    """What is shown or exported of a damaged run is what was made; whoever goes on with it makes the same bits."""
    shutil.copytree(finished(), folder / "run", dirs_exist_ok=True)
    names = sorted(str(p.relative_to(folder / "run")) for p in (folder / "run").rglob("*") if p.is_file())
    hurt = [names[int(number)] for number in random.choice(len(names), int(random.integers(1, 4)), replace=False)]
    for name in hurt:
        path = folder / "run" / name
        match int(random.integers(6)):
            case 0:
                path.unlink()
            case 1:
                path.unlink()
                path.mkdir()
            case 2:
                other = folder / "run" / names[int(random.integers(len(names)))]
                if other.is_file():
                    shutil.copyfile(other, folder / "swap")
                    path.write_bytes((folder / "swap").read_bytes())
            case _:
                path.write_bytes(damaged(path.read_bytes(), random))
    Library(folder).entries()
    target = folder / "out.mp4"
    if not refused(lambda: [*exporting(folder / "run", target, metadata=False, overwrite=True)]):
        assert frames_of(target) == frames_of(exported()), f"an export shows other frames, {hurt}"

    def go_on() -> None:
        with Project.open(folder / "run") as project:
            project.lock()
            run(project)
            with Project.open(finished()) as wanted:
                assert project.chunks == wanted.chunks
                for index in range(wanted.chunks):
                    assert project.read_fragment(index) == wanted.read_fragment(index), f"other frames, {hurt}"
                    equal = (project.read_latents(index) == wanted.read_latents(index)).all()
                    assert bool(equal), f"other latents, {hurt}"
        assert (folder / "run" / "video.mp4").read_bytes() == (finished() / "video.mp4").read_bytes(), hurt

    refused(go_on)
    return ", ".join(hurt)


_HEADER_ONLY = 20_000
"""Bytes of a file of tensors in which it says what it holds; the numbers themselves say nothing of damage."""


def weights(folder: Path, random: np.random.Generator) -> str:
    """A model's folder: what is not refused says of itself what the untouched one says."""
    root = folder / "model"
    names = model_files()
    name = names[int(random.integers(len(names)))]
    for other in names:
        (root / other).parent.mkdir(parents=True, exist_ok=True)
        (root / other).unlink(missing_ok=True)
        os.link(model_root() / other, root / other)
    data = (root / name).read_bytes()
    (root / name).unlink()
    if name.endswith(".safetensors") and random.random() < 0.7:
        data = damaged(data[:_HEADER_ONLY], random) + data[_HEADER_ONLY:]
    else:
        data = damaged(data, random)
    (root / name).write_bytes(data)

    def read() -> None:
        files = open_model(root)
        check_contents(files)
        load_special_tokens(files)
        load_tokenizer(files.text_encoder)

    refused(read)
    return name


def settings(folder: Path, random: np.random.Generator) -> str:
    kinds = {
        "settings.json": (lambda: json.dumps(a_request()).encode(), read_settings),
        "video.mp4": (lambda: growing(a_request()), read_settings),
        "utf16.json": (lambda: json.dumps(a_request()).encode("utf-16"), read_settings),
        "a.json": (lambda: json.dumps(a_request()["timeline"]).encode(), read_timeline),
        "a.txt": (lambda: b"[blend: 1] [0s-2s: a red ball] [2s-4s cut: a blue box]", read_timeline),
        "a.srt": (lambda: b"1\n00:00:00,000 --> 00:00:02,000\na red ball\n\n2\n00:00:02,000 --> 00:00:04,000\nb\n",
                  read_timeline),
    }  # fmt: skip
    name = [*kinds][int(random.integers(len(kinds)))]
    make, read = kinds[name]
    path = folder / name
    path.write_bytes(damaged(made(make, name), random))
    refused(lambda: read(path))
    return name


KINDS: dict[str, Callable[[Path, np.random.Generator], str]] = {
    "clips": clip, "pictures": still, "runs": a_run, "weights": weights, "settings": settings
}  # fmt: skip


_made: dict[object, bytes] = {}


def made(make: Callable[[], bytes], key: object = None) -> bytes:
    key = key or make
    if key not in _made:
        _made[key] = make()
    return _made[key]


@functools.cache
def kept() -> Path:
    """A folder for what is made once."""
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


@functools.cache
def finished() -> Path:
    """A run's folder, done."""
    from magi_lite.request.request import GenerationRequest
    from magi_lite.timeline.text import parse

    asked = GenerationRequest(parse("[0s-1s: a] [1s-3s: b]"), 3, SIZE, SIZE, window=1, steps=4, seed=3)
    with Project.create(kept() / "runs", asked) as project:
        run(project)
    return project.folder


@functools.cache
def exported() -> Path:
    target = kept() / "whole.mp4"
    assert [*exporting(finished(), target, metadata=False)]
    return target


def frames_of(video: Path) -> list[bytes]:
    with av.open(str(video)) as container:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0)]


@functools.cache
def model_root() -> Path:
    """The shipped model, copied to where files can be linked from."""
    shutil.copytree(open_model("demo").vae.parents[1], kept() / "model")
    return kept() / "model"


@functools.cache
def model_files() -> list[str]:
    found = (path for path in model_root().rglob("*") if path.is_file() and path.suffix != ".md")
    return sorted(str(path.relative_to(model_root())) for path in found)


# --- how it is run


class Fault(NamedTuple):
    """A case that did not end as it should."""

    kind: str
    seed: int
    what: str


def faults(kind: str, seeds: range) -> Iterator[Fault]:
    """What goes wrong in the cases of some seeds, each batch in a child of its own."""
    for prepare in (finished, exported, model_files) if kind in ("runs", "weights") else ():
        prepare()
    for table in {"clips": [CLIPS], "pictures": [PICTURES]}.get(kind, []):
        for make in table.values():
            made(make)
    for start in range(seeds.start, seeds.stop, BATCH):
        left = range(start, min(start + BATCH, seeds.stop))
        while left:
            lines, code = in_child(kind, left)
            for line in lines:
                if line["what"]:
                    yield Fault(kind, line["seed"], f"{line['name']}: {line['what']}")
            if code:  # the one behind the last that was reported
                yield Fault(kind, left.start + len(lines), f"ended by signal {-code}" if code < 0 else f"exit {code}")
            left = left[len(lines) + 1 :] if code else range(0)


def in_child(kind: str, seeds: range) -> tuple[list[dict[str, Any]], int]:
    """A line for each case that came to its end, and how the child ended."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        report = Path(folder) / "report.jsonl"
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with report.open("w") as file:
                    for seed in seeds:
                        file.write(json.dumps(case(kind, seed, Path(folder))) + "\n")
                        file.flush()
                code = 0
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        lines = report.read_text().splitlines() if report.exists() else []
        return [json.loads(line) for line in lines], code


def case(kind: str, seed: int, root: Path) -> dict[str, Any]:
    """One of them: its name, and what was wrong."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"more than {MOST_SECONDS} s")

    signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    before, folder = memory.begin(), root / str(seed)
    folder.mkdir()
    name = what = ""
    try:
        name = KINDS[kind](folder, np.random.default_rng(seed))
    except BaseException:
        what = "".join(traceback.format_exc().splitlines(keepends=True)[-12:])
    signal.setitimer(signal.ITIMER_PROF, 0)
    grown = (memory.peak() - before) >> 20
    if not what and grown > MOST_MEGABYTES:
        what = f"{grown} MB"
    if not (what and __name__ == "__main__"):
        shutil.rmtree(folder, ignore_errors=True)
    return {"seed": seed, "name": name, "what": what}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_at_random(kind: str) -> None:
    assert not [*faults(kind, range(25))]


if __name__ == "__main__":
    count, first = int(sys.argv[1]), int(sys.argv[2])
    found: dict[str, Any] = {"first seed": first, "cases": {}, "faults": []}
    for one in sys.argv[3:] or KINDS:
        for fault in faults(one, range(first, first + count)):
            print(*fault, sep="\n", file=sys.stderr, flush=True)
            found["faults"].append(fault)
        found["cases"][one] = count
    shutil.rmtree(kept(), ignore_errors=True)
    print(json.dumps(found, indent=2))
