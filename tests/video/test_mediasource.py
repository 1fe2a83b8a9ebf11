"""A browser plays the file while it grows: a real Chromium is fed each piece as soon as the writer has written it."""

import base64

import pytest

from magi_lite.video.writer import VideoWriter

OPEN = """async mime => {
    if (!MediaSource.isTypeSupported(mime)) return 'unsupported';
    const video = window.video = document.createElement('video'); video.muted = true; document.body.append(video);
    const source = window.source = new MediaSource(); video.src = URL.createObjectURL(source);
    await new Promise(done => source.addEventListener('sourceopen', done, {once: true}));
    window.buffer = source.addSourceBuffer(mime); return 'open'; }"""
APPEND = """async text => {
    const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
    await new Promise((done, fail) => { buffer.addEventListener('updateend', done, {once: true});
        buffer.addEventListener('error', fail, {once: true}); buffer.appendBuffer(bytes); });
    return [...Array(buffer.buffered.length).keys()].map(i => [buffer.buffered.start(i), buffer.buffered.end(i)]); }"""
PLAY = """async () => { video.playbackRate = 8; await video.play();
    await new Promise(done => { const poll = () => video.currentTime >= 2.2 ? done() : setTimeout(poll, 20); poll(); });
    return [video.videoWidth, video.videoHeight, video.error && video.error.message]; }"""


def test_chromium_plays_each_chunk_as_it_is_written(browser, tmp_path, frames):
    path, sent = tmp_path / "a.mp4", 0
    page = browser.new_page()
    with VideoWriter(path, (64, 48)) as writer:
        assert page.evaluate(OPEN, writer.mime) == "open"
        for seed, (count, end) in enumerate([(1, 1), (24, 25), (24, 49), (12, 61)]):
            writer.append(frames(count, seed=seed))
            data = path.read_bytes()[sent:]
            sent += len(data)
            buffered = page.evaluate(APPEND, base64.b64encode(data).decode())
            assert len(buffered) == 1, "the seconds join without a gap"
            assert buffered[0] == pytest.approx([0, end / 24], abs=1e-3)
    assert page.evaluate(PLAY) == [64, 48, None]
    page.close()
