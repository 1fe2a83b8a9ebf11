"""What we write, a reader that shares no code with the writer plays: imageio, through an ffmpeg program of its own."""

import imageio.v3 as imageio
import numpy as np
import pytest

from magi_lite.video.writer import VideoWriter, finalize


@pytest.mark.parametrize("finished", [False, True], ids=["growing", "finished"])
def test_another_library_reads_every_frame(tmp_path, frames, finished):
    chunks = [frames(24, seed=seed) for seed in range(2)]
    path = tmp_path / "a.mp4"
    with VideoWriter(path, (64, 48), crf=10) as writer:
        for chunk in chunks:
            writer.append(chunk)
    if finished:
        finalize(path)
    facts = imageio.immeta(path, plugin="FFMPEG")
    assert (facts["fps"], tuple(facts["size"])) == (24.0, (64, 48))
    read = imageio.imread(path, plugin="FFMPEG")
    assert read.shape == (48, 48, 64, 3)
    assert np.abs(read.astype(int) - np.concatenate(chunks).astype(int)).mean() < 4
