"""Making videos in the page: from words, from an image, steered while they run. The real app on the demo model."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
from gradio_client import Client
from PIL import Image
from playwright.sync_api import Page, expect

from magi_lite.project import Project
from magi_lite.timeline.text import print_shorthand
from magi_lite.ui.examples import FOLDER as TIMELINES
from magi_lite.video.writer import read_settings
from magi_lite.weights.layout import DEMO_FOLDER
from quant.storage.shards import has_weights
from tests.ui.conftest import (
    PATIENCE,
    App,
    Watched,
    generate,
    segments,
    set_length,
    set_seed,
    set_size,
    shoot,
    slowly,
    unfold,
    wait_done,
    wait_for,
    wait_for_another,
)

RIGHT = "a large red ball moves right in a meadow"
LEFT = "a large red ball moves left in a meadow"
STILL = "a large red ball stands still in a meadow"


def drop(page: Page, path: Path, name: str | None = None) -> None:
    """Drop a file somewhere on the page, as from a file manager."""
    data = base64.b64encode(path.read_bytes()).decode()
    transfer = page.evaluate_handle(
        """async ([data, name]) => {
          const bytes = await (await fetch('data:application/octet-stream;base64,' + data)).arrayBuffer();
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], name));
          return transfer;
        }""",
        [data, name or path.name],
    )
    page.dispatch_event("#mg-prompt", "dragover", {"dataTransfer": transfer})
    page.dispatch_event("#mg-prompt", "drop", {"dataTransfer": transfer})


def mode(page: Page) -> str:
    return page.locator("#mg-mode input:checked").get_attribute("value") or ""


def frames_of(video: Path) -> np.ndarray:
    """(T, H, W, 3) uint8."""
    with av.open(str(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def latents(project: Project) -> list[bytes]:
    """Bits of every finished second."""
    return [project.read_latents(n).numpy().tobytes() for n in range(project.chunks)]


def test_text_to_video_plays_while_it_grows_and_its_file_restores_the_settings(
    page: Page, watched: Watched, app: App
) -> None:
    set_length(page, 12)
    slowly(page)
    set_seed(page, 1234)
    page.fill("#mg-prompt textarea", RIGHT)
    page.evaluate("""() => { window.watched = {played: 0, status: new Set(), previews: 0, moving: 0, whole: 0, part: 0,
        bare: 0};
      const video = document.querySelector('.wa-video');
      video.addEventListener('emptied', () => { if (watched.played && !video.poster) watched.bare += 1; });
      setInterval(() => { const job = magi.state && magi.state.shown; if (!job || job.state !== 'running') return;
        const [whole, part] = document.querySelectorAll('.wa-bars .mg-bar i');
        if (!video.hidden) watched.played = Math.max(watched.played, video.currentTime);
        watched.status.add(document.querySelector('.wa-status').textContent);
        if ([...document.querySelectorAll('.wa-preview')].some(node => !node.hidden)) watched.previews += 1;
        watched.moving = Math.max(watched.moving, document.querySelectorAll('.tl-moving').length);
        watched.whole = Math.max(watched.whole, parseFloat(whole.style.width) || 0);
        watched.part = Math.max(watched.part, parseFloat(part.style.width) || 0); }, 50); }""")
    generate(page)
    wait_done(page, 1)
    wait_for(page, "finished")
    seen = page.evaluate("({...watched, status: [...watched.status]})")
    assert seen["played"] > 0, "nothing played before the video was finished"
    assert seen["moving"] >= 2, "the seconds in the making did not move"
    assert seen["bare"] == 0, "the stage was black while one source took the place of another"
    assert seen["previews"] and seen["whole"] > 30 and seen["part"] > 0
    assert any(re.search(r"Second \d+ of 12·step \d+ of \d+", text) for text in seen["status"]), seen["status"]
    page.wait_for_function("(v => !v.hidden && v.readyState >= 2 && !v.paused)(document.querySelector('.wa-video'))")
    assert page.evaluate("document.querySelectorAll('.tl-thumb').length") == 12
    project = Project.open(app.newest())
    assert project.status == "finished" and project.request.seed == 1234
    assert len(frames_of(project.video)) in range(285, 289)  # 24 a second; the first frame of all may stand alone
    watched.reload(page)
    page.wait_for_function("words => document.querySelector('#mg-prompt textarea').value === words", arg=RIGHT)
    page.fill("#mg-prompt textarea", STILL)
    set_length(page, 5)
    set_seed(page, 1)
    drop(page, project.video, "from-a-friend.mp4")
    page.wait_for_function("words => document.querySelector('#mg-prompt textarea').value === words", arg=RIGHT)
    page.wait_for_function("document.querySelector('#mg-seed input').value === '1234'")
    page.wait_for_function("document.querySelector('#mg-seconds input[type=number]').value === '12'")
    assert page.input_value("#mg-seconds input[type=number]") == "12"
    assert read_settings(project.video)["seed"] == 1234


def test_one_click_on_an_example_makes_its_video(page: Page, app: App) -> None:
    example = json.loads((TIMELINES / "0_demo.json").read_text(encoding="utf-8"))
    story = [(block["start"], block["end"], block["prompt"]) for block in example["timeline"]["segments"]]
    set_seed(page, 1)
    page.click("#mg-size-head button")
    before = page.evaluate("magi.attached")
    page.click(".wa-card[data-example='0_demo']")
    wait_for_another(page, before)
    assert segments(page) == story
    wait_for(page, "finished")
    page.wait_for_function("n => document.querySelectorAll('.tl-thumb').length === n", arg=example["seconds"])
    page.locator(".tb-chip", has_text="Ready").wait_for()
    page.wait_for_function("(v => !v.hidden && v.readyState >= 2 && !v.paused)(document.querySelector('.wa-video'))")
    page.evaluate("(v => { v.pause(); v.currentTime = 0.8; })(document.querySelector('.wa-video'))")
    page.wait_for_function("(v => !v.seeking && v.readyState >= 2)(document.querySelector('.wa-video'))")
    shoot(page, "create")
    request = Project.open(app.newest()).request
    assert request.seconds == example["seconds"] and request.seed == 1
    assert [(block.start, block.end, block.prompt) for block in request.timeline.segments] == story


def test_an_image_starts_a_video_and_picks_the_mode(page: Page, app: App, tmp_path: Path) -> None:
    picture = tmp_path / "start.png"
    Image.fromarray(np.random.default_rng().integers(0, 255, (48, 96, 3)).astype(np.uint8)).save(picture)
    drop(page, picture)
    page.get_by_text("moves a camera, light and weather over").wait_for()  # what to expect of the demo model
    page.wait_for_function("document.querySelector('#mg-mode input:checked').value === 'Start with image'")
    page.wait_for_selector(".so-drop.filled img")
    set_length(page, 1)
    set_size(page, 70, 50)  # not legal: the nearest ones are taken
    page.wait_for_function("document.querySelector('#mg-width input').value === '64'")
    page.wait_for_function("document.querySelector('#mg-height input').value === '48'")
    generate(page)
    wait_for(page, "finished")
    project = Project.open(app.newest())
    assert project.request.image is not None and project.request.image.read_bytes() == picture.read_bytes()
    assert frames_of(project.video).shape[1:3] == (48, 64)
    page.click(".so-remove")
    page.wait_for_function("document.querySelector('#mg-mode input:checked').value === 'Text to video'")


def bad_files(folder: Path) -> dict[str, Path]:
    """Files that cannot be used."""
    files = {name: folder / name for name in ("notes.png", "nothing.png", "huge.png", "broken.mp4")}
    files["notes.png"].write_text("this is no picture")
    files["nothing.png"].write_bytes(b"")
    Image.new("1", (20_100, 20_000)).save(files["huge.png"])
    files["broken.mp4"].write_bytes(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(2000))
    return files


def test_bad_uploads_each_show_their_sentence(page: Page, tmp_path: Path) -> None:
    said = set()
    for name, path in bad_files(tmp_path).items():
        drop(page, path)
        page.wait_for_function("name => document.querySelector('.so-error').textContent.includes(name)", arg=name)
        sentence = page.inner_text(".so-error")
        assert sentence.endswith(".") and "Traceback" not in sentence and str(tmp_path) not in sentence, sentence
        assert "\n" not in sentence and "mistake" not in sentence, sentence
        said.add(sentence.replace(name, ""))
        taken = page.locator(".so-name").all_inner_texts()  # none, or the picture of the video on the stage
        assert name not in taken
    assert len(said) == 4, said


def test_a_file_dropped_where_its_place_is_not_seen_brings_it_to_view(page: Page) -> None:
    """On another tab, or with the settings scrolled away."""
    drop = """([name, bytes]) => {
        const files = new DataTransfer();
        files.items.add(new File([bytes], name));
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}));
    }"""
    page.get_by_role("tab", name="Gallery").click()
    page.locator(".ga").wait_for()
    page.evaluate(drop, ["letter.pdf", "%PDF-1.4"])
    refusal = page.get_by_text("letter.pdf is neither an image nor a video")
    expect(refusal).to_be_in_viewport()
    unfold(page, "size")
    unfold(page, "advanced")
    page.evaluate("document.querySelector('#mg-settings').scrollTop = 9999")
    expect(refusal).not_to_be_in_viewport()
    page.evaluate(drop, ["other.pdf", "%PDF-1.4"])
    expect(page.get_by_text("other.pdf is neither an image nor a video")).to_be_in_viewport()


def test_nothing_to_make_is_said_in_the_page(page: Page) -> None:
    page.fill("#mg-prompt textarea", "")
    page.click("#mg-generate")
    page.get_by_text("Write what you want to see").first.wait_for()
    page.locator("#mg-mode label", has_text="Start with image").click()
    page.fill("#mg-prompt textarea", "x")
    page.click("#mg-generate")
    page.get_by_text("Start with image needs an image").first.wait_for()


def test_an_endless_run_survives_a_reload_pauses_resumes_and_stops(page: Page, watched: Watched, app: App) -> None:
    page.fill("#mg-prompt textarea", RIGHT)
    slowly(page)
    page.locator("#mg-endless input").check()
    page.wait_for_function("document.querySelectorAll('.tl-tick').length > 10")
    page.click("[data-action=add]")
    page.keyboard.type("first words")
    page.keyboard.press("Enter")
    job = generate(page)
    wait_done(page, 1)
    watched.reload(page)
    page.wait_for_function("id => window.magi && magi.attached === id && magi.state.shown", arg=job)
    page.wait_for_function("magi.timeline && magi.timeline.segments.length === 1")
    assert page.input_value("#mg-prompt textarea") == RIGHT
    other = watched.open(app.url)
    other.wait_for_function("id => magi.attached === id && magi.state.shown.state === 'running'", arg=job)
    other.close()
    page.click(".wa [data-action=pause]")
    wait_for(page, "paused")
    made = page.evaluate("magi.state.shown.done")
    page.click(".wa [data-action=resume]")
    page.wait_for_function("magi.state.shown.state === 'running'", timeout=PATIENCE)
    wait_done(page, made + 1)
    page.click(".wa [data-action=stop]")
    wait_for(page, "stopped")
    project = Project.open(app.newest())
    assert project.status == "stopped" and project.chunks >= made + 1
    assert len(frames_of(project.video)) >= 24 * project.chunks - 3


def test_editing_a_pending_block_while_it_runs_is_obeyed(page: Page, app: App) -> None:
    """The edited run equals, bit for bit, a run that was told so from the start."""
    set_length(page, 11)
    slowly(page)
    set_seed(page, 77)
    page.fill("#mg-prompt textarea", "")
    page.click("[data-action=text]")
    page.fill(".tl-shorthand", f"[0s-8s: {STILL}] [8s-11s: {STILL}]")
    page.wait_for_function("magi.timeline.segments.length === 2")
    generate(page)
    page.wait_for_function("magi.state.shown.locked >= 1 && magi.state.shown.progress", timeout=PATIENCE)
    page.focus(".tl-block >> nth=1")
    page.keyboard.press("Enter")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(LEFT)
    page.keyboard.press("Enter")
    page.get_by_text("Applied from second").first.wait_for()
    start = next(first for first, _, words in segments(page) if words == LEFT)
    half = "document.querySelector('.tl-block.locked, .tl-block.part')"
    assert page.evaluate(f"magi.state.shown.state !== 'running' || Boolean({half})")
    shoot(page, "steer")
    wait_for(page, "finished")
    edited = Project.open(app.newest())
    assert [(s.start, s.prompt) for s in edited.request.timeline.segments][-1] == (start, LEFT)
    assert start == 8 and edited.chunks == 11

    page.evaluate("magi.attached = null")
    generate(page)  # the timeline as it stands now, same seed
    wait_for(page, "finished")
    told = Project.open(app.newest())
    assert told.folder != edited.folder
    assert latents(told) == latents(edited)
    if has_weights(DEMO_FOLDER / "ckpt/magi/demo/inference_weight.distill"):
        from training.judge import Asked, judge

        frames = frames_of(edited.video)

        def shows(motion: str, second: int) -> bool:
            asked = Asked("ball", "red", "large", "meadow", motion)
            return judge(frames[24 * second : 24 * second + 24], asked).followed["motion"]

        assert any(shows("moves left", second) for second in range(start, start + 3))
        assert sum(shows("stands still", second) for second in range(start)) > 0.8 * start


def make_slowly(page: Page, *, seconds: int, begun: int) -> None:
    """A video of one block, `begun` seconds of which can no longer change."""
    set_size(page, 96, 96)
    set_length(page, seconds)
    slowly(page)
    page.click("[data-action=add]")
    page.wait_for_selector(".tl-editor")
    page.keyboard.type("a large red ball falls")
    page.keyboard.press("Enter")
    generate(page)
    reached = f"magi.state.shown.state === 'running' && magi.state.shown.locked >= {begun}"
    page.wait_for_function(reached, timeout=PATIENCE)


def test_once_every_second_has_begun_the_timeline_is_the_next_versions(page: Page) -> None:
    """What is written then stays on the page, and the video in the making is left alone; as the hint says."""
    make_slowly(page, seconds=4, begun=4)
    page.get_by_text("Changes apply to the next version").wait_for()
    page.locator(".tl-block").dblclick()
    page.wait_for_selector(".tl-editor")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("a large red ball jumps")
    page.keyboard.press("Enter")
    assert segments(page) == [(0, 2, "a large red ball jumps")]
    wait_for(page, "finished")
    assert page.locator(".mg-toast.error").count() == 0
    assert page.evaluate("magi.state.shown.timeline.segments[0].prompt") == "a large red ball falls"
    assert segments(page) == [(0, 2, "a large red ball jumps")]


def test_a_block_that_has_begun_says_so_when_it_is_written_in(page: Page) -> None:
    make_slowly(page, seconds=12, begun=2)
    page.locator(".tl-block.locked").dblclick()
    page.locator(".mg-toast", has_text="can no longer change").wait_for()
    assert page.locator(".tl-editor").count() == 0
    page.click(".wa [data-action=stop]")
    wait_for(page, "stopped")


def test_the_prompt_of_a_running_video_can_be_changed(page: Page, app: App) -> None:
    """It is obeyed from the second that the page names on; told so from the start, the bits are equal."""
    set_length(page, 9)
    slowly(page)
    set_seed(page, 78)
    page.fill("#mg-prompt textarea", STILL)
    assert page.locator("#mg-steer").is_hidden()
    generate(page)
    page.wait_for_function("magi.state.shown.locked >= 2 && magi.state.shown.progress", timeout=PATIENCE)
    page.fill("#mg-prompt textarea", LEFT)
    page.get_by_text("Not applied yet").wait_for()
    page.click("[data-action=apply]")
    page.get_by_text("Applied from second").first.wait_for()
    second = page.evaluate("magi.state.shown.redirected.second")
    page.wait_for_function("n => document.querySelector('.tl-hint').innerText.includes('from second')", arg=second)
    shoot(page, "steer-prompt")
    wait_for(page, "finished")
    steered = Project.open(app.newest())
    assert 2 <= second < 9 and steered.chunks == 9
    words = [mix.text for mix in steered.request.timeline.compile(9)]
    assert words == [STILL] * second + [LEFT] * (9 - second)
    client = Client(app.url, verbose=False)
    shorthand, request = print_shorthand(steered.request.timeline), steered.request
    client.predict("", 9, shorthand, seed=78, quality="quality", width=request.width, height=request.height,
                   api_name="/generate")  # fmt: skip
    while client.predict(api_name="/status")["running"] or app.newest() == steered.folder:
        page.wait_for_timeout(300)
    assert latents(Project.open(app.newest())) == latents(steered)


@pytest.fixture
def finished(page: Page, app: App) -> Project:
    """A video of three seconds."""
    set_length(page, 3)
    set_seed(page, 5)
    page.fill("#mg-prompt textarea", RIGHT)
    generate(page)
    wait_for(page, "finished")
    return Project.open(app.newest())


def test_redo_from_second_2_and_extend_keep_what_was_there(page: Page, app: App, finished: Project) -> None:
    before = latents(finished)
    page.click(".wa [data-action=redo]")
    dialog = page.locator("dialog[open]")
    dialog.locator("input[type=number]").first.fill("2")
    dialog.locator("textarea").fill(LEFT)
    dialog.locator("[data-field=seed]").fill("6")
    old = page.evaluate("magi.attached")
    dialog.locator("button[type=submit]").click()
    wait_for_another(page, old)
    wait_for(page, "finished")
    newer = Project.open(app.newest())
    assert newer.folder != finished.folder and newer.parent["project"] == finished.name
    after = latents(newer)
    assert after[:2] == before[:2] and after[2] != before[2]
    for second in range(2):  # the frames too, byte for byte
        name = f"chunks/{second:05}.m4s"
        assert (newer.folder / name).read_bytes() == (finished.folder / name).read_bytes()
    assert latents(Project.open(finished.folder)) == before

    page.click(".wa [data-action=extend]")
    page.locator("dialog[open] input[type=number]").fill("1")
    old = page.evaluate("magi.attached")
    page.locator("dialog[open] button[type=submit]").click()
    wait_for_another(page, old)
    wait_for(page, "finished")
    longer = Project.open(newer.folder)
    assert longer.chunks == 4 and latents(longer)[:3] == after

    page.get_by_role("tab", name="Gallery").click()
    page.wait_for_selector(f"[data-video='{newer.name}']")  # its versions are one video
    assert page.locator(f"[data-video='{finished.name}']").count() == 0
    page.get_by_label("Group versions").uncheck()
    page.wait_for_selector(f"[data-video='{finished.name}']")
    page.wait_for_selector(f"[data-video='{newer.name}']")
    shoot(page, "gallery")
    page.click(f"[data-video='{finished.name}']")
    page.wait_for_function("(v => v && v.readyState >= 2)(document.querySelector('dialog[open] video'))")
    shoot(page, "gallery-video")
    page.click("dialog[open] [data-action=delete]")
    page.wait_for_selector(f"[data-video='{finished.name}']", state="detached")
    page.click("[data-action=bin]")
    page.wait_for_selector(f"[data-video='{finished.name}']")  # nothing is deleted at once
    page.click("[data-action=empty-bin]")
    page.click("dialog[open] [data-action=sure]")
    page.get_by_text("The bin is empty.").wait_for()
    assert not finished.folder.exists() and not (app.projects / ".bin" / finished.name).exists()
    page.click("[data-action=back]")
    page.click(f"[data-video='{newer.name}']")
    page.click("dialog[open] [data-action=use]")
    page.wait_for_function("document.querySelector('#mg-seconds input').value === '4'")
    wanted = [(s.start, s.end, s.prompt) for s in longer.request.timeline.segments]
    page.wait_for_function("n => magi.timeline.segments.length === n", arg=len(wanted))
    assert json.dumps(segments(page)) == json.dumps(wanted)


def test_the_same_settings_once_more_are_told_and_lead_to_another_video(page: Page, app: App) -> None:
    page.fill("#mg-prompt textarea", RIGHT)
    set_length(page, 2)
    set_seed(page, 4321)
    generate(page)
    wait_for(page, "finished")
    assert page.locator("[data-action=another-seed]").count() == 0
    again = generate(page)
    action = page.locator(".mg-toast [data-action=another-seed]")
    assert action.evaluate("node => node.scrollWidth <= node.clientWidth"), "the label is wider than its button"
    assert action.evaluate(
        "(node) => { const [a, b] = [node, node.nextSibling].map((one) => one.getBoundingClientRect());"
        " return a.right <= b.left || a.top >= b.bottom; }"
    ), "it lies over the message's other button"
    action.click()
    wait_for_another(page, again)
    wait_for(page, "finished")
    assert Project.open(app.newest()).request.seed != 4321
    made = [Project.open(path.parent).request.seed for path in app.projects.glob("*/project.json")]
    assert made.count(4321) == 1, "what was begun and given up stays in the gallery"
    assert page.input_value("#mg-seed input") == "-1"
    page.wait_for_function("id => !magi.state.jobs.some((job) => job.id === id && job.state === 'running')", arg=again)
    generate(page)
    wait_for(page, "finished")
    assert page.locator("[data-action=another-seed]").count() == 0
