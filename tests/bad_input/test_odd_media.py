"""Odd but honest media, by hundreds of programs: what can be read is read, the rest is one sentence."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from magi_lite.errors import MediaError
from magi_lite.video.clips import load_tail, read_whole
from magi_lite.video.images import load_image
from magi_lite.video.look import look_at

SCENE = ("-f", "lavfi", "-i", "testsrc2=s=64x48:r=24:d=1")
TONE = ("-f", "lavfi", "-i", "sine=d=1")
X264, FFV1 = ("-c:v", "libx264"), ("-c:v", "ffv1")
CLIPS: dict[str, tuple[str, ...]] = {
    "a.mp4": X264, "deep.mp4": (*X264, "-pix_fmt", "yuv444p10le"), "deep.mkv": (*FFV1, "-pix_fmt", "yuv444p12le"),
    "gbr.mkv": (*FFV1, "-pix_fmt", "gbrp12le"), "grey.mkv": (*FFV1, "-pix_fmt", "gray10le"),
    "full.mp4": (*X264, "-vf", "scale=out_range=full", "-color_range", "pc"), "prores.mov": ("-c:v", "prores_ks"),
    "alpha.mov": ("-c:v", "qtrle", "-pix_fmt", "argb"), "alpha.webm": ("-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p"),
    "mjpeg.avi": ("-c:v", "mjpeg"), "raw.avi": ("-c:v", "rawvideo", "-pix_fmt", "bgr24"),
    "huff.avi": ("-c:v", "huffyuv"),
    "a.y4m": (), "deep.y4m": ("-pix_fmt", "yuv420p10le", "-strict", "-1"), "a.264": X264, "a.ivf": ("-c:v", "libvpx"),
    "a.wmv": (), "cinepak.mov": ("-c:v", "cinepak"), "a.flv": ("-c:v", "flv"), "a.rm": ("-c:v", "rv20"),
    "a.nut": FFV1, "a.ts": ("-c:v", "mpeg2video"), "a.mpg": ("-c:v", "mpeg2video", "-q:v", "2"),
}  # fmt: skip
"""A second in many forms, of 24 frames of the same scene each."""
NONE: dict[str, tuple[str, ...]] = {
    "a.mp3": TONE, "a.m4a": TONE, "a.ogg": (*TONE, "-c:a", "libvorbis"), "a.flac": TONE, "a.wav": TONE, "a.mka": TONE,
    "cover.mp3": (*TONE, "-i", "{}.jpg", "-map", "0", "-map", "1", "-c:v", "copy", "-disposition:v", "attached_pic"),
    "cover.m4a": (*TONE, "-i", "{}.jpg", "-map", "0", "-map", "1", "-c:v", "copy", "-disposition:v", "attached_pic"),
    "subtitles.mkv": ("-i", "{}.srt", "-c:s", "srt"),
}  # fmt: skip


def ffmpeg(*arguments: object) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    path = tmp_path_factory.mktemp("scene") / "a.mkv"
    ffmpeg(*SCENE, *FFV1, path)
    return load_tail(path, (64, 48), frames=24).astype(int)


@pytest.mark.parametrize("name", CLIPS)
def test_a_scene_in_many_forms(tmp_path: Path, name: str, wanted: np.ndarray) -> None:
    path = tmp_path / name
    ffmpeg(*SCENE, *CLIPS[name], path)
    assert (look_at(path).kind, look_at(path).width, look_at(path).height) == ("video", 64, 48)
    whole = np.stack([*read_whole(path, (64, 48), "crop").frames]).astype(int)
    assert len(whole) in ((24, 25) if name == "a.mpg" else (23, 24) if name == "a.264" else (24,))
    if name == "grey.mkv":
        wanted = np.repeat((wanted @ [0.299, 0.587, 0.114])[..., None], 3, -1)
    assert np.abs(whole[:20] - wanted[:20]).mean() < 14 and np.abs(whole.mean() - wanted.mean()) < 8


@pytest.mark.parametrize("name", NONE)
def test_files_without_moving_pictures(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.new("RGB", (64, 48), (200, 40, 40)).save(tmp_path / "x.jpg")
    (tmp_path / "x.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    ffmpeg(*(one.format(tmp_path / "x") for one in NONE[name]), path)
    for read in (look_at, lambda path: load_tail(path, (64, 48))):
        with pytest.raises(MediaError, match=r"has no moving pictures in it; use an MP4, MOV or WebM\.$"):
            read(path)


@pytest.mark.parametrize("name", ["a.mng", "a.jng", "a.svg", "a.pdf", "a.eps", "a.m3u8", "a.sdp", "a.html", "a.pcx"])
def test_what_is_neither_is_one_sentence(tmp_path: Path, name: str) -> None:
    content = {
        "a.mng": b"\x8aMNG\r\n\x1a\n" + bytes(60), "a.jng": b"\x8bJNG\r\n\x1a\n" + bytes(60), "a.pdf": b"%PDF-1.4\n",
        "a.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/hosts'/></svg>",
        "a.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n", "a.m3u8": b"#EXTM3U\n#EXTINF:1,\nother.ts\n", "a.html": b"<html></html>",
        "a.sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n", "a.pcx": b"\x0a\x05\x01\x08" + bytes(200),
    }[name]  # fmt: skip
    (tmp_path / name).write_bytes(content)
    for read in (look_at, lambda path: load_tail(path, (64, 48)), lambda path: load_image(path, (64, 48))):
        with pytest.raises(MediaError) as caught:
            read(tmp_path / name)
        text = str(caught.value)
        assert text.startswith(name) and text.endswith(".") and "\n" not in text
