"""MAGI Lite from Python: what the README shows, and what its keywords take."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import magi_lite
from magi_lite import library
from magi_lite.errors import InputError, MagiLiteError, OutputError
from magi_lite.events import Finished, Opened
from magi_lite.project import Project
from magi_lite.video.images import load_image

ROOT = Path(__file__).parents[1]
SMALL = {"preset": "demo", "size": "32x32", "window": 1, "seconds": 1}


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; began = time.perf_counter(); import magi_lite; took = time.perf_counter() - began\n"
        "print([m for m in ('torch', 'numpy', 'av', 'gradio', 'PIL') if m in sys.modules])\n"
        "names = {'generate', 'stream', 'plan', 'export', 'Result'}\n"
        "print(names <= set(dir(magi_lite)), 'magi_lite.library' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "True False"]


def test_what_the_readme_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (program,) = (one for one in programs if one.startswith("import magi_lite"))
    assert len(program.splitlines()) < 12
    Image.new("RGB", (48, 48), "teal").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {}
    exec(program, known)
    video, first, last = known["video"], known["first"], known["event"]
    assert isinstance(video, magi_lite.Result) and video.path == tmp_path / "ball.mp4" and video.path.is_file()
    assert video.seconds == 2 and video.seed == video.request.seed and video.project.is_dir()
    assert first.dtype == np.uint8 and first.shape == (video.request.height, video.request.width, 3)
    assert len(list(video.frames())) == 48
    assert isinstance(last, Finished) and last.chunks == 2


def test_a_picture_may_be_in_memory_and_is_kept_bit_for_bit(tmp_path: Path) -> None:
    pixels = np.random.default_rng().integers(0, 256, (32, 32, 4), dtype=np.uint8)
    for image in (pixels, Image.fromarray(pixels), Image.fromarray(pixels[..., 0]), pixels[..., :3]):
        events = magi_lite.stream("a ball", image=image, projects=tmp_path, seed=1, **SMALL)
        folder = next(event.project for event in events if isinstance(event, Opened))
        events.close()
        with Project.open(folder) as project:
            kept = project.request.image
        assert kept is not None and kept.is_relative_to(folder)
        assert np.array_equal(np.asarray(Image.open(kept)), np.asarray(image))
        assert load_image(kept, (32, 32)).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"not \(4, 4, 2\) in uint8"),
        (np.zeros((4, 4, 3), np.float32), r"not \(4, 4, 3\) in float32"),
        (np.zeros((0, 4, 3), np.uint8), r"not \(0, 4, 3\)"),
        (object(), "not"),
    ],
)
def test_what_is_no_picture_is_refused(image: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        magi_lite.generate("x", image=image, projects=tmp_path, **SMALL)
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_and_is_made_again_from_a_second(tmp_path: Path) -> None:
    first = magi_lite.generate("a red ball", projects=tmp_path, seed=5, **SMALL)
    longer = magi_lite.generate(resume=first.project, seconds=2)
    assert (longer.project, longer.seconds, longer.seed) == (first.project, 2, 5)
    version = magi_lite.generate("it falls", resume=first.project, redo_from=1)
    assert version.project != first.project and version.seconds == 2
    assert [mix.text for mix in version.request.timeline.compile(2)] == ["a red ball", "it falls"]
    again = magi_lite.generate(settings=first.path, projects=tmp_path / "other", out=tmp_path / "again.mp4", seconds=1)
    assert again.request.seed == 5 and again.path == tmp_path / "again.mp4"
    with pytest.raises(OutputError, match="exists"):
        magi_lite.generate("x", projects=tmp_path / "other", out=tmp_path / "again.mp4", **SMALL)


def test_a_plan_needs_no_prompt_and_follows_the_same_choices_as_a_run() -> None:
    found = magi_lite.plan(preset="demo", quality="draft", seconds=3)
    wanted = library.ask(prompt="x", preset="demo", quality="draft", seconds=3)
    for name in ("model", "width", "height", "steps", "seconds"):
        assert getattr(found.request, name) == getattr(wanted, name)
    assert found.summary()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"secnds": 2}, r"no option 'secnds' \(did you mean seconds\?\)"),
        ({"seconds": 0}, "cannot have 0 seconds"),
        ({"steps": 7}, "no schedule of 7 steps"),
        ({"seconds": 2, "endless": True}, "contradict"),
        ({"size": "64x64", "width": 64}, "contradict"),
        ({"image": "nowhere.png"}, "There is no file nowhere.png"),
        ({"redo_from": 1}, "--resume"),
        ({"resume": "nowhere"}, "nowhere"),
        ({"settings": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_mistakes_are_one_sentence(options: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(MagiLiteError, match=words):
        magi_lite.generate("a ball", projects=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_blocks_picture_may_be_in_memory_a_path_or_beside_the_timelines_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng().integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "here.png")
    (tmp_path / "story.txt").write_text("[0s-1s: a] [1s-2s image=here.png: b] [2s-3s cut: c]")
    blocks = [{"start": 0, "end": 1, "prompt": "a"}, {"start": 1, "end": 2, "prompt": "b"}]
    blocks.append({"start": 2, "end": 3, "prompt": "c", "cut": True})
    for image in (pixels, Image.fromarray(pixels), tmp_path / "here.png", str(tmp_path / "here.png"), None):
        segments = [blocks[0], blocks[1] | {"image": image}, blocks[2]]
        timeline = {"segments": segments} if image is not None else tmp_path / "story.txt"
        events = magi_lite.stream(timeline=timeline, projects=tmp_path / "runs", seed=1, **SMALL | {"seconds": 3})
        folder = next(event.project for event in events if isinstance(event, Opened))
        events.close()
        with Project.open(folder) as project:
            shots = project.request.timeline.shots(3)
        assert [shot.start for shot in shots] == [0, 1, 2]
        assert shots[1].image is not None and shots[1].image.parent == folder / "inputs" and shots[2].image is None
        assert np.array_equal(np.asarray(Image.open(shots[1].image)), pixels)
    with pytest.raises(InputError, match="An image array is"):
        next(magi_lite.stream(timeline={"segments": [blocks[0] | {"image": [1]}]}, projects=tmp_path, **SMALL))


def test_settings_name_a_blocks_picture_by_its_content(tmp_path: Path) -> None:
    """A file of that name with another content is refused; a timeline of one's own takes its place."""
    Image.new("RGB", (32, 32), "teal").save(tmp_path / "here.png")
    options = {"projects": tmp_path / "runs", "seed": 1, **SMALL | {"seconds": 2}}
    story = f'[0s-1s: a] [1s-2s image="{tmp_path / "here.png"}": b]'
    made = magi_lite.generate(timeline=story, **options)
    settings = library.read_settings(made.path)
    assert settings.timeline.segments[1].image == Path(made.request.timeline.segments[1].image.name)
    with pytest.raises(MagiLiteError, match="There is no file"):
        magi_lite.generate(settings=made.path, projects=tmp_path / "runs")
    again = magi_lite.generate(settings=made.path, timeline=story, projects=tmp_path / "runs")
    with Project.open(made.project) as first, Project.open(again.project) as second:
        for index in range(2):
            assert np.array_equal(first.read_latents(index).numpy(), second.read_latents(index).numpy())
