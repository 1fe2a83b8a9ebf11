"""Downloading through the real huggingface_hub from a hub of our own: what is fetched, resumed, checked, reused."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load

from magi_lite.cli import main
from magi_lite.errors import DownloadError, InputError, OutputError
from magi_lite.weights import hub as module
from magi_lite.weights import layout, transfer
from magi_lite.weights.hub import DownloadCancelled, HuggingFace, download, missing_files
from magi_lite.weights.loader import load_dit
from magi_lite.weights.opening import open_model
from quant.storage.lock import alone
from tests.weights.fake_hub import FakeHub

MODEL = "4.5B-distill"
WEIGHTS = "ckpt/magi/4.5B_distill/inference_weight.distill/model.safetensors"


def tokens() -> bytes:
    """A special-token file of the demo model's width."""
    buffer = io.BytesIO()
    rows = {"caption_token": 1, "logo_token": 1, "other_tokens": 100}
    np.savez(buffer, **{name: np.random.default_rng(0).standard_normal((n, 64)) for name, n in rows.items()})
    return buffer.getvalue()


@pytest.fixture
def hub(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The untrained model offered as a published one, among files that nobody asked for."""
    files = {}
    for path in sorted(tiny_model.rglob("*")):
        if path.is_file() and path.name != "special_tokens.safetensors":
            name = str(path.relative_to(tiny_model))
            name = name.replace("/demo/inference", "/4.5B_distill/inference").replace(
                "magi/demo/", "magi/4.5B_distill/"
            )
            files[name.replace("t5/demo", "t5/t5-v1_1-xxl")] = path.read_bytes()
    files |= {
        "README.md": b"read me",
        "ckpt/magi/24B_base/inference_weight/model.safetensors": b"not wanted",
        "ckpt/magi/4.5B_base/inference_weight/model.safetensors": b"not wanted",
        "ckpt/magi1.1/4.5B_distill/inference_weight.distill/model.safetensors": b"another release",
        "ckpt/magi/24B_base/vae/model.safetensors": b"not the autoencoder",
        "ckpt/t5/t5-v1_1-xxl/pytorch_model.bin": b"not wanted beside safetensors",
        "figures/picture.png": b"not wanted",
        "raw/special_tokens.npz": tokens(),
    }
    with FakeHub(files) as server:
        npz = files["raw/special_tokens.npz"]
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # a cut loses up to one piece
        monkeypatch.setattr(module, "SPECIAL_TOKENS_URLS", (f"{server.endpoint}/raw/special_tokens.npz",))
        monkeypatch.setattr(module, "SPECIAL_TOKENS_SHA256", hashlib.sha256(npz).hexdigest())
        monkeypatch.setattr(module, "SPECIAL_TOKENS_BYTES", len(npz))
        yield server


def fetch(hub: FakeHub, folder: Path, **options: object):  # type: ignore[no-untyped-def]
    return download(MODEL, folder, source=HuggingFace(endpoint=hub.endpoint), **options)


def test_only_what_is_needed_arrives_whole_and_loads(hub: FakeHub, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    files = fetch(hub, tmp_path / "models", progress=lambda *now: told.append(now))
    arrived = {str(p.relative_to(tmp_path / "models")) for p in (tmp_path / "models").rglob("*") if p.is_file()}
    unwanted = ("24B", "4.5B_base", "magi1.1", "README", "figures", ".bin", "raw/")
    wanted = {name for name in hub.files if not any(part in name for part in unwanted)} | {"special_tokens.npz"}
    assert arrived == wanted
    assert all((tmp_path / "models" / n).read_bytes() == hub.files[n] for n in wanted - {"special_tokens.npz"})
    total = sum((tmp_path / "models" / name).stat().st_size for name in wanted)
    assert {everything for _, everything, _ in told} == {total}
    done = [now for now, _, _ in told]
    assert done == sorted(done) and done[-1] == total
    assert {file for _, _, file in told} == wanted
    assert load_dit(files).config == files.spec.dit
    assert open_model(MODEL, tmp_path / "models") == files
    assert missing_files(MODEL, tmp_path / "models") == []


def test_a_short_interruption_is_ridden_out(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut_after, hub.cuts_left = 1_000_000, 100  # more cuts than are needed: it never refuses
    fetch(hub, tmp_path)
    asked = [first for name, first in hub.requests if name == WEIGHTS]
    assert asked == [0, 1_000_000]
    assert (tmp_path / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_a_connection_that_is_reset_is_made_again(hub: FakeHub, tmp_path: Path) -> None:
    """Once for a file; a hub that always does so is no connection."""
    hub.resets_left = 1
    fetch(hub, tmp_path / "once")
    assert (tmp_path / "once" / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    hub.resets_left = 100
    with pytest.raises(DownloadError, match="cannot be fetched; run the download again when there is a connection"):
        fetch(hub, tmp_path / "always")


def test_a_dead_download_goes_on_where_it_was_cut(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut_after, hub.cuts_left = 200_000, 1
    with pytest.raises(
        DownloadError, match=r"model\.safetensors was cut; what arrived is kept, run the download again"
    ):
        fetch(hub, tmp_path)
    part = next(tmp_path.rglob("*.part"))
    kept = part.stat().st_size
    assert kept == 200_000
    assert not any(path.suffix == ".safetensors" and path.stat().st_size == kept for path in tmp_path.rglob("*"))
    hub.refuse, hub.cut_after, before = False, None, len(hub.requests)
    fetch(hub, tmp_path)
    again = dict(hub.requests[before:])
    assert again[WEIGHTS] == kept  # only the rest was asked for
    assert (tmp_path / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert list(tmp_path.rglob("*.part")) == []


def test_what_never_began_is_not_said_to_be_kept(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut_after, hub.cuts_left = 0, 1
    with pytest.raises(DownloadError) as refused:
        fetch(hub, tmp_path)
    assert "cannot be fetched; run the download again when there is a connection" in str(refused.value)
    assert "kept" not in str(refused.value)


def test_what_is_there_is_not_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    hub.requests.clear()
    fetch(hub, tmp_path)
    assert hub.requests == []


def test_a_file_of_another_size_is_replaced(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).parent.mkdir(parents=True)
    (tmp_path / WEIGHTS).write_bytes(b"an old version")
    fetch(hub, tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_verify_finds_and_mends_rotten_files(hub: FakeHub, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    for name in (WEIGHTS, "ckpt/vae/config.json"):
        (tmp_path / name).write_bytes(bytes(len(hub.files[name])))
    hub.requests.clear()
    fetch(hub, tmp_path, verify=True)
    assert {name for name, _ in hub.requests} == {WEIGHTS, "ckpt/vae/config.json"}
    assert (tmp_path / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


@pytest.mark.parametrize("name", [WEIGHTS, "ckpt/t5/t5-v1_1-xxl/config.json", "raw/special_tokens.npz"])
def test_contents_that_do_not_match_their_hash_are_refused(name: str, hub: FakeHub, tmp_path: Path) -> None:
    hub.corrupt.add(name)
    with pytest.raises(DownloadError, match=rf"{name.rpartition('/')[2]} arrived damaged"):
        fetch(hub, tmp_path)
    assert list(tmp_path.rglob("*.part")) == []
    hub.corrupt.clear()
    fetch(hub, tmp_path)


def test_stopping_keeps_what_arrived(hub: FakeHub, tmp_path: Path) -> None:
    arrived = []

    def stop() -> bool:
        return sum(arrived) > 0

    with pytest.raises(DownloadCancelled, match=r"was stopped in .*run it again to continue"):
        fetch(hub, tmp_path, cancelled=stop, progress=lambda done, total, file: arrived.append(done))
    fetch(hub, tmp_path)
    assert missing_files(MODEL, tmp_path) == []


def test_offline_names_what_is_missing(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=rf"nowhere lacks ckpt/.*safetensors.*; download {MODEL} once"):
        download(MODEL, tmp_path / "nowhere", offline=True)
    fetch(hub, tmp_path)
    hub.refuse = True
    hub.requests.clear()
    assert download(MODEL, tmp_path, offline=True).weights == tmp_path / Path(WEIGHTS).parent
    assert hub.requests == []
    (tmp_path / WEIGHTS).rename((tmp_path / WEIGHTS).with_name("model-00001-of-00002.safetensors"))
    with pytest.raises(DownloadError, match=r"lacks ckpt/magi/4\.5B_distill/.*/model-00002-of-00002\.safetensors;"):
        download(MODEL, tmp_path, offline=True)
    shutil.rmtree(tmp_path / "ckpt" / "vae")
    (tmp_path / "special_tokens.npz").unlink()
    (tmp_path / "ckpt/t5/t5-v1_1-xxl/model.safetensors").unlink()
    assert missing_files(MODEL, tmp_path)[1:] == [
        "ckpt/vae/config.json",
        "ckpt/t5/t5-v1_1-xxl/*.safetensors",
        "special_tokens.npz",
    ]


def test_a_local_token_file_is_used_and_checked(hub: FakeHub, tmp_path: Path) -> None:
    local = tmp_path / "mine.npz"
    local.write_bytes(hub.files["raw/special_tokens.npz"])
    fetch(hub, tmp_path / "models", special_tokens=local)
    assert "raw/special_tokens.npz" not in [name for name, _ in hub.requests]
    local.write_bytes(b"something else")
    with pytest.raises(InputError, match=r"mine\.npz is not the published special_tokens\.npz"):
        fetch(hub, tmp_path / "models", special_tokens=local)


def test_no_connection_no_space_no_model_no_permission_have_their_sentences(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"There is no model '7B' to download; choose from 4\.5B-base"):
        download("7B", tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot be written: .*; choose another folder"):
        fetch(hub, tmp_path / "file" / "models")
    with monkeypatch.context() as patched:
        patched.setattr(transfer.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 9, 1))
        with pytest.raises(OutputError, match=r"GB are to be downloaded and .* has 0\.0 GB free"):
            fetch(hub, tmp_path / "models")
    del hub.files[WEIGHTS]
    with pytest.raises(DownloadError, match=r"holds no weights below ckpt/ in a folder named 4\.5B_distill"):
        fetch(hub, tmp_path / "models")
    hub.refuse = True
    with pytest.raises(DownloadError, match=r"sand-ai/MAGI-1 cannot be listed; check the connection \(.*403"):
        fetch(hub, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_paths_that_lead_outside_are_not_followed(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["ckpt/vae/../../../escaped.json"] = b"{}"
    fetch(hub, tmp_path / "models")
    assert not list(tmp_path.rglob("escaped.json"))


def test_special_tokens_come_by_themselves(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For weights that another tool fetched: the one file, where the sentence says, its hash checked."""
    monkeypatch.setattr(layout, "DEFAULT_MODELS_FOLDER", tmp_path / "none")
    fetch(hub, tmp_path / "models")
    tokens_file = tmp_path / "models" / "special_tokens.npz"
    tokens_file.unlink()
    with pytest.raises(layout.SpecialTokensMissing, match=rf"download special-tokens --models {tmp_path / 'models'}"):
        open_model(MODEL, tmp_path / "models")
    hub.requests.clear()
    assert main(["download", "special-tokens", "--models", str(tmp_path / "models")]) == 0
    assert capsys.readouterr().out.strip() == str(tokens_file)
    assert [name for name, _ in hub.requests] == ["raw/special_tokens.npz"]
    open_model(MODEL, tmp_path / "models")
    tokens_file.unlink()
    hub.corrupt.add("raw/special_tokens.npz")
    assert main(["download", "special-tokens", "--models", str(tmp_path / "models")]) == 3
    assert not tokens_file.exists() and "arrived damaged" in capsys.readouterr().err


def test_a_model_that_lacks_the_special_tokens_alone_is_completed_by_them(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the app's Download button and `download MODEL` do for weights that another tool fetched: one request."""
    monkeypatch.setattr(layout, "DEFAULT_MODELS_FOLDER", tmp_path / "none")
    fetch(hub, tmp_path / "models")
    (tmp_path / "models" / "special_tokens.npz").unlink()
    hub.requests.clear()
    files = fetch(hub, tmp_path / "models")
    assert [name for name, _ in hub.requests] == ["raw/special_tokens.npz"]
    assert files.special_tokens == tmp_path / "models" / "special_tokens.npz"


def test_a_pickled_text_encoder_is_converted_with_the_download(hub: FakeHub, tmp_path: Path) -> None:
    """So the first prompt does not wait for it; its bytes are counted and its progress is told."""
    name = "ckpt/t5/t5-v1_1-xxl/model.safetensors"
    buffer = io.BytesIO()
    torch.save(load(hub.files.pop(name)), buffer)
    hub.files["ckpt/t5/t5-v1_1-xxl/pytorch_model.bin"] = buffer.getvalue()
    told: list[tuple[int, int, str]] = []
    files = fetch(hub, tmp_path, progress=lambda *now: told.append(now))
    arrived = sum(
        path.stat().st_size for path in tmp_path.rglob("*") if path.is_file() and "converted" not in str(path)
    )
    assert {total for _, total, _ in told} == {arrived + len(buffer.getvalue()) // 2}
    assert told[-1][:2] == (told[-1][1], told[-1][1]) and told[-1][2] == "converting the text encoder"
    converted = files.text_encoder / "converted-bfloat16"
    stamps = {path: path.stat().st_mtime_ns for path in converted.iterdir()}
    assert stamps
    fetch(hub, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in converted.iterdir()} == stamps


def described(**changes: object) -> bytes:
    """A list of one file, described in another way."""
    entry = {"type": "file", "path": WEIGHTS, "size": 9, "oid": "0" * 40, "lfs": {"oid": "0" * 64, "size": 9}}
    return json.dumps([{**entry, **changes}]).encode()


LISTINGS = {
    "a page that wants a login": b"<html>Log in</html>",
    "nothing": b"",
    "an object": b'{"error": "x"}',
    "null": b"null",
    "no files": b"[]",
    "a size in words": described(size="9", lfs=None),
    "a size below nothing": described(size=-9, lfs=None),
    "a size beyond all disks": described(size=10**30, lfs=None),
    "a hash that is a path": described(lfs={"oid": "../../x", "size": 9}),
    "no hash": described(lfs=None, oid=None),
    "half an entry": b'[{"type": "file", "path": "a"}]',
}


@pytest.mark.parametrize("case", LISTINGS)
def test_a_listing_that_is_none_is_one_sentence(case: str, hub: FakeHub, tmp_path: Path) -> None:
    hub.listing = LISTINGS[case]
    with pytest.raises(DownloadError, match=r"cannot be listed \(what came is no list of files\); .* try again\.$"):
        fetch(hub, tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_names_that_no_disk_takes_are_left_alone(hub: FakeHub, tmp_path: Path) -> None:
    for name in ("a\0b", "\ud800", "a" * 300, "a\\..\\b", "con:x"):
        hub.files[f"ckpt/vae/{name}.json"] = b"{}"
    fetch(hub, tmp_path)
    assert missing_files(MODEL, tmp_path) == []


def test_a_page_instead_of_weights_is_nothing_to_go_on_from(hub: FakeHub, tmp_path: Path) -> None:
    """As networks answer that want a login: the rest would be fetched behind it, and all of it refused at the end."""
    hub.pages = {WEIGHTS}
    with pytest.raises(DownloadError, match=r"A web page arrived instead of .*; log in to this network"):
        fetch(hub, tmp_path)
    hub.pages, hub.requests = set(), []
    fetch(hub, tmp_path)
    assert (WEIGHTS, 0) in hub.requests and (tmp_path / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


@pytest.mark.parametrize("done", [0, 1000])
def test_what_never_ends_does_not_fill_the_disk(done: int, hub: FakeHub, tmp_path: Path) -> None:
    hub.endless = {WEIGHTS}
    if done:
        partial = tmp_path / f"{WEIGHTS}.{hashlib.sha256(hub.files[WEIGHTS]).hexdigest()[:12]}.part"
        partial.parent.mkdir(parents=True)
        partial.write_bytes(hub.files[WEIGHTS][:done])
    with pytest.raises(DownloadError, match=r"More arrived for .* than its \d+ bytes"):
        fetch(hub, tmp_path)
    assert max(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= len(hub.files[WEIGHTS])
    hub.endless = set()
    fetch(hub, tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_models_that_share_files_are_downloaded_at_once(hub: FakeHub, tmp_path: Path) -> None:
    """Each fetches what the other does not, and neither writes into what the other is writing."""
    base = "ckpt/magi/4.5B_base/inference_weight/model.safetensors"
    hub.files[base] = hub.files[WEIGHTS]
    hub.files["ckpt/magi/4.5B_base/config.json"] = hub.files["ckpt/magi/4.5B_distill/config.json"]
    hub.pause = 0.01
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            download(name, tmp_path, source=HuggingFace(endpoint=hub.endpoint))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in (MODEL, "4.5B-base", MODEL)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    names = [name for name, _ in hub.requests]
    assert sorted(names) == sorted(set(names))
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".part", ".lock"))]


def test_waiting_for_another_download_can_be_stopped(hub: FakeHub, tmp_path: Path) -> None:
    key = hashlib.sha256(hub.files[WEIGHTS]).hexdigest()[:12]
    (tmp_path / WEIGHTS).parent.mkdir(parents=True)
    stopped = threading.Event()
    with alone(tmp_path / Path(WEIGHTS).parent / f".model.safetensors.{key}.part.lock", "x"):
        threading.Timer(0.5, stopped.set).start()
        with pytest.raises(DownloadCancelled, match="run it again to continue"):
            fetch(hub, tmp_path, cancelled=stopped.is_set)
