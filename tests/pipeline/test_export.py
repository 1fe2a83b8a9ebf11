"""A finished run in other formats: its latents decoded again, any range, without generating anything."""

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from magi_lite.cli import main
from magi_lite.cli.export import parse_seconds
from magi_lite.errors import InputError, OutputError
from magi_lite.events import Finished, Progress
from magi_lite.pipeline.export import export, exporting
from magi_lite.video import labels
from magi_lite.video.writer import read_settings
from tests.video.test_export import tone


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of three seconds by the shipped demo model, and its frames as they were shown."""
    from magi_lite.events import ChunkFinished
    from magi_lite.pipeline import generate, prompts
    from magi_lite.request.request import GenerationRequest
    from magi_lite.timeline.text import parse

    root = tmp_path_factory.mktemp("export")
    before, prompts.EMBEDDINGS_FOLDER = prompts.EMBEDDINGS_FOLDER, root / "embeddings"
    try:
        request = GenerationRequest(parse("[0s-3s: a red ball]"), 3, 64, 32, window=1, seed=5, preset="demo")
        events = list(generate(request, projects_folder=root / "runs"))
    finally:
        prompts.EMBEDDINGS_FOLDER = before
    shown = np.concatenate([event.frames for event in events if isinstance(event, ChunkFinished)])
    return events[-1].project, shown


def frames_of(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_lossless_holds_more_than_was_shown(finished, tmp_path):
    """16-bit FFV1: cut to 8 bits it is the shown frames to the bit (rounding aside), and it has levels between them."""
    folder, shown = finished
    seen = []
    target = export(folder, tmp_path / "a.mkv", progress=seen.append)
    with av.open(str(target)) as container:
        frames = list(container.decode(video=0))
        planes = np.stack([[np.frombuffer(p, "<u2").reshape(32, -1)[:, :64] for p in f.planes] for f in frames])
    values = np.moveaxis(planes[:, [2, 0, 1]], 1, -1)
    assert values.shape == shown.shape
    off = np.abs(values / 65535 * 255 - 0.5 - shown.astype(float))
    assert off.max() < 0.51, "the same picture, finer"
    assert len(np.unique(values)) > 256
    assert [event.fraction for event in seen] == pytest.approx([1 / 3, 2 / 3, 1])
    assert seen[-1].eta_seconds == 0 and seen[0].eta_seconds > 0


@pytest.mark.parametrize("seconds", [(0, 1), (0.5, 2.25), (2, 3), (1 / 24, 2 / 24)])
def test_any_range(finished, tmp_path, seconds):
    folder, shown = finished
    target = export(folder, tmp_path / "frames", seconds)
    wanted = shown[round(seconds[0] * 24) : round(seconds[1] * 24)]
    files = sorted(target.iterdir())
    assert len(files) == len(wanted)
    assert all(np.array_equal(np.asarray(Image.open(path)), frame) for path, frame in zip(files, wanted, strict=True))


def test_a_moment_is_a_frame(finished, tmp_path):
    folder, shown = finished
    for moment, number in ((None, 0), (1.5, 36), ((2.9, 3.0), 70)):
        target = export(folder / "video.mp4", tmp_path / "a.png", moment, overwrite=True)
        assert np.array_equal(np.asarray(Image.open(target)), shown[number])


def test_whole_seconds_of_plain_mp4_are_copies(finished, tmp_path, monkeypatch):
    """Nothing is decoded or encoded again, so it needs no model; a part of a second does."""
    folder, shown = finished
    parts = frames_of(folder / "video.mp4")
    with monkeypatch.context() as patch:
        patch.setattr("magi_lite.pipeline.export.open_model", None)
        target = export(folder, tmp_path / "a.mp4", (1, 3))
        with pytest.raises(TypeError):
            export(folder, tmp_path / "b.mp4", (1, 2.5))
    assert np.array_equal(frames_of(target), parts[24:])
    assert read_settings(target)["seed"] == 5 and labels.SOURCE_TYPE.encode() in target.read_bytes()
    again = frames_of(export(folder, tmp_path / "b.mp4", (1, 2.5)))
    assert len(again) == 36 and np.abs(np.stack(again).astype(int) - shown[24:60]).mean() < 4


COPY = """
import sys
sys.modules["torch"] = None  # whoever asks for it fails
from magi_lite.pipeline.export import export
for arguments in ((None, None), (None, sys.argv[3]), ((1, 2), None)):
    print(export(sys.argv[1], sys.argv[2], arguments[0], audio=arguments[1], overwrite=True))
"""


def test_copies_need_no_torch(finished, tmp_path):
    folder, _ = finished
    tone(tmp_path / "a.wav", 2)
    run = [sys.executable, "-c", COPY, str(folder), str(tmp_path / "a.mp4"), str(tmp_path / "a.wav")]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "a.mp4")] * 3


def test_sound_lies_under_a_copy(finished, tmp_path):
    folder, _ = finished
    tone(tmp_path / "a.wav", 2)
    target = export(folder, tmp_path / "a.mp4", audio=tmp_path / "a.wav")
    with av.open(str(target)) as container:
        rate = container.streams.audio[0].rate
        heard = sum(frame.samples for frame in container.decode(audio=0))
    assert heard / rate == pytest.approx(3, abs=0.05)
    assert np.array_equal(frames_of(target), frames_of(folder / "video.mp4"))
    assert read_settings(target)["seed"] == 5 and labels.SOURCE_TYPE.encode() in target.read_bytes()
    bare = export(folder, tmp_path / "b.mp4", audio=tmp_path / "a.wav", metadata=False)
    assert read_settings(bare) is None and labels.SOURCE_TYPE.encode() in bare.read_bytes()


def test_settings_are_left_out_where_wanted(finished, tmp_path):
    folder, _ = finished
    for name in ("hevc", "h264"):
        target = export(folder, tmp_path / f"{name}.mp4", (0, 1), format=name, metadata=False)
        assert read_settings(target) is None and labels.SOURCE_TYPE.encode() in target.read_bytes()
    target = export(folder, tmp_path / "a.mov", (0, 1))
    assert read_settings(target)["seed"] == 5


def test_what_cannot_be_exported(finished, tmp_path):
    folder, _ = finished
    sentence = "has 3 finished seconds; ask for a range inside 0-3"
    for seconds in ((2, 4), (2, 2), (2, 1), (3.5, 4), (3, 3.01)):
        with pytest.raises(InputError, match=sentence):
            export(folder, tmp_path / "a.mkv", seconds)
    with pytest.raises(InputError, match="no project"):
        export(tmp_path, tmp_path / "a.mkv")
    (tmp_path / "dear.mkv").write_bytes(b"dear")
    with pytest.raises(OutputError, match=r"exists; give another name, or add --overwrite"):
        export(folder, tmp_path / "dear.mkv")
    with pytest.raises(OutputError, match=r"The folder .* does not exist"):
        export(folder, tmp_path / "nowhere" / "a.mkv")
    assert [path.name for path in tmp_path.iterdir()] == ["dear.mkv"]


def test_a_second_that_cannot_be_read_leaves_no_file(finished, tmp_path):
    import shutil

    folder = Path(shutil.copytree(finished[0], tmp_path / "run"))
    chunk = folder / "chunks" / "00002.safetensors"
    chunk.write_bytes(chunk.read_bytes()[:-8])
    for target in (tmp_path / "a.mkv", tmp_path / "frames"):
        with pytest.raises(InputError, match="damaged"):
            list(exporting(folder, target))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_command(finished, tmp_path, capsys):
    folder, _ = finished
    assert main(["export", str(folder), "--to", str(tmp_path / "a.gif"), "--seconds", "0-0.5"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "a.gif") and "as GIF" in said.err
    assert Image.open(tmp_path / "a.gif").n_frames == 12
    assert main(["export", str(folder), "--to", str(tmp_path / "a.gif")]) == 4
    assert "add --overwrite" in capsys.readouterr().err
    assert main(["export", str(folder), "--to", "prores", "--seconds", "1-2"]) == 0
    written = Path(capsys.readouterr().out.strip())
    assert written.parent == folder and written.suffix == ".mov" and len(frames_of(written)) == 24
    for text in ("x", "1-", "-1", "1-2-3", "9" * 30, "1e3"):
        with pytest.raises(InputError, match="cannot be read; write FROM-TO"):
            parse_seconds(text)
    assert (parse_seconds("1.5"), parse_seconds(" 1-2.5 "), parse_seconds(None)) == (1.5, (1.0, 2.5), None)


MEASURE = """
import json, resource, sys
from pathlib import Path
from magi_lite.pipeline.export import export
folder, target = sys.argv[1:]
from magi_lite.project import Project
export(folder, Path(target) / "warm.mkv", (0, 1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
export(folder, Path(target) / "long.mkv")
print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024))
"""


def test_memory_does_not_grow_with_the_length(finished, tmp_path):
    """60 seconds take no more than a few seconds' pixels above what one takes."""
    import shutil

    folder = Path(shutil.copytree(finished[0], tmp_path / "run"))
    for index in range(3, 60):
        for kind in ("safetensors", "m4s", "jpg"):
            shutil.copy(folder / "chunks" / f"00000.{kind}", folder / "chunks" / f"{index:05}.{kind}")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(tmp_path)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    second = 24 * 64 * 32 * 3 * 4
    assert json.loads(done.stdout) < 24 << 20 and 60 * second > 30 << 20
    assert len(frames_of(tmp_path / "long.mkv")) == 60 * 24


def test_events_end_with_the_file(finished, tmp_path):
    events = list(exporting(finished[0], tmp_path / "a.webp", (0, 2)))
    assert isinstance(events[-1], Finished) and events[-1].video == tmp_path / "a.webp" and events[-1].chunks == 2
    assert [event.chunk for event in events if isinstance(event, Progress)] == [0, 1]
