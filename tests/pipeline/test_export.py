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
from magi_lite.project import Project
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


def test_a_range_has_the_frames_that_are_shown_at_its_ends(finished, tmp_path):
    """Stepped to by keys, which stop in the middle of a frame, and written in thousandths of a second."""
    folder, shown = finished
    files = sorted(export(folder, tmp_path / "frames", (0.271, 1.271)).iterdir())
    for path, frame in ((files[0], shown[6]), (files[-1], shown[30])):
        assert np.array_equal(np.asarray(Image.open(path)), frame)
    assert len(files) == 25


def test_a_moment_is_a_frame(finished, tmp_path):
    folder, shown = finished
    # Frame 69 begins at 2.875 s; a video that has played to its end shows its last frame.
    for moment, number in ((None, 0), (1.5, 36), ((2.9, 3.0), 69), (0.271, 6), (1.979, 47), (0.042, 1), (3, 71)):
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
    with pytest.raises(InputError, match=r"no frame from second 1 to 1.0001; ask for at least 1/24 of a second"):
        export(folder, tmp_path / "a.mkv", (1, 1.0001))
    with pytest.raises(InputError, match="ask for a range inside 0-3"):
        export(folder, tmp_path / "a.png", 3.1)
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
    states = [path for path in (folder / "states").iterdir() if path.is_file()]
    for path in (folder / "chunks" / "00002.safetensors", folder / "chunks" / "00002.m4s", *states):
        path.write_bytes(path.read_bytes()[:-8])  # some of them alone would be restored
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
import json, sys
from pathlib import Path
from tests import memory
from magi_lite.pipeline.export import export
folder, target = sys.argv[1:]
from magi_lite.project import Project
export(folder, Path(target) / "warm.mkv", (0, 1))
before = memory.peak()
export(folder, Path(target) / "long.mkv")
print(json.dumps(memory.peak() - before))
"""


def test_memory_does_not_grow_with_the_length(finished, tmp_path):
    """60 seconds take no more than a few seconds' pixels above what one takes."""
    import shutil

    folder = Path(shutil.copytree(finished[0], tmp_path / "run"))
    with Project.open(folder) as project:
        latents, frames = project.read_latents(0), frames_of(project.video)[:24]
        project.extend(57)
        for index in range(3, 60):
            project.write_chunk(index, latents, np.stack(frames))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(tmp_path)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    second = 24 * 64 * 32 * 3 * 4
    assert json.loads(done.stdout) < 24 << 20 and 60 * second > 30 << 20
    assert len(frames_of(tmp_path / "long.mkv")) == 60 * 24


@pytest.mark.parametrize("to", ["video.mp4", "VIDEO.mp4", "chunks", "inputs/a.png", "chunks/00000.mp4", "", ".."])
def test_a_part_of_the_run_is_never_replaced(finished, to):
    folder = finished[0]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match=r"is a part of the run itself; choose another name\.$"):
        export(folder, folder / to, format=None if "." in to.strip(".") else "png", overwrite=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_events_end_with_the_file(finished, tmp_path):
    events = list(exporting(finished[0], tmp_path / "a.webp", (0, 2)))
    assert isinstance(events[-1], Finished) and events[-1].video == tmp_path / "a.webp" and events[-1].chunks == 2
    assert [event.chunk for event in events if isinstance(event, Progress)] == [0, 1]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A clip of 1.5 s at 30 frames per second: a bar that moves, under it a tone of 440 Hz from 0.25 s on."""
    path = tmp_path_factory.mktemp("clip") / "mine.mp4"
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libx264", rate=30), container.add_stream("aac", rate=48000, layout="mono")
        video.width, video.height, video.pix_fmt, video.options = 64, 32, "yuv420p", {"crf": "1"}
        for number in range(45):
            pixels = np.full((32, 64, 3), 60, np.uint8)
            pixels[:, number : number + 8] = 200
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode(None))
        for start in range(12_000, 72_000, 1000):
            wave = 0.3 * np.sin(np.arange(start, start + 1000) * 2 * np.pi * 440 / 48000)
            frame = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], "fltp", "mono")
            frame.rate, frame.pts = 48000, start
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path


@pytest.fixture(scope="module")
def continued(tmp_path_factory, clip):
    """The folder of a run of one second that continues the clip."""
    from magi_lite.pipeline import generate, prompts
    from magi_lite.request.request import GenerationRequest
    from magi_lite.timeline.text import parse

    root = tmp_path_factory.mktemp("continued")
    before, prompts.EMBEDDINGS_FOLDER = prompts.EMBEDDINGS_FOLDER, root / "embeddings"
    try:
        request = GenerationRequest(
            parse("[0s-1s: a red ball]"), 1, 64, 32, window=1, seed=5, preset="demo", video=clip
        )
        return list(generate(request, projects_folder=root / "runs"))[-1].project
    finally:
        prompts.EMBEDDINGS_FOLDER = before


def heard(path):
    """A channel of a file's sound, and how many samples a second has."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        step = 1 if stream.format.is_planar else stream.channels
        return np.concatenate([frame.to_ndarray()[0, ::step] for frame in container.decode(stream)]), stream.rate


def pitch(sound, rate):
    return np.count_nonzero(np.diff(sound > 0)) / 2 / (len(sound) / rate)


def test_the_clip_stands_in_front_with_its_sound(continued, clip, tmp_path):
    """Its last second is what the run saw of it; behind it is silence, or a sound of one's own."""
    from magi_lite.video.clips import load_tail

    alone = frames_of(export(continued, tmp_path / "new.mkv"))
    whole = frames_of(export(continued, tmp_path / "both.mkv", clip=True))
    assert len(whole) == 36 + 24 and np.array_equal(whole[36:], alone)
    assert np.abs(np.stack(whole[12:36]).astype(int) - load_tail(clip, (64, 32), frames=24)).max() <= 1
    tone(tmp_path / "mine.wav", 0.5, 880)
    for audio, after in ((None, 0), (tmp_path / "mine.wav", 880)):
        sound, rate = heard(export(continued, tmp_path / "a.mp4", clip=True, audio=audio, overwrite=True))
        spans = {moment: (round(moment * rate), round((moment + 0.1) * rate)) for moment in (0.1, 0.3, 1.35, 1.6, 2.2)}
        at = {moment: sound[first:last] for moment, (first, last) in spans.items()}
        assert len(sound) / rate == pytest.approx(2.5, abs=0.05)
        assert max(np.abs(at[0.1]).max(), np.abs(at[2.2]).max()) < 0.02
        assert pitch(at[0.3], rate) == pytest.approx(440, abs=15) == pitch(at[1.35], rate)
        assert (pitch(at[1.6], rate) == pytest.approx(880, abs=15)) if after else np.abs(at[1.6]).max() < 0.02


def test_the_clips_sound_fades_out_where_the_clip_ends(continued, tmp_path):
    sound, rate = heard(export(continued, tmp_path / "a.mkv", clip=True))
    loud = [np.abs(sound[round((1.5 - ago) * rate) :][: round(0.005 * rate)]).max() for ago in (0.1, 0.03, 0.005)]
    assert loud[0] * 0.7 > loud[1] > 0 and loud[0] * 0.12 > loud[2] > 0
    assert not sound[round(1.5 * rate) :].any()


def test_a_clip_goes_into_pictures_too_and_what_cannot_be_is_said(continued, finished, tmp_path):
    assert len(list(export(continued, tmp_path / "frames", clip=True).iterdir())) == 60
    with pytest.raises(InputError, match="continues no clip; leave out --clip"):
        export(finished[0], tmp_path / "b.mp4", clip=True)
    for options in ({"seconds": (0.5, 1), "to": tmp_path / "b.mp4"}, {"to": tmp_path / "b.png"}):
        with pytest.raises(InputError, match="in front of second 0"):
            export(continued, clip=True, **options)
