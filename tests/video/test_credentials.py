"""Content Credentials: there, true, and broken by any change; and one sentence where they cannot be made."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import c2pa
import numpy as np
import pytest

from magi_lite.errors import InputError, OutputError
from magi_lite.video.credentials import SOURCE_TYPE, _self_made, check_credentials, sign
from magi_lite.video.export import open_export
from tests.disk import small_files


@pytest.fixture(params=["h264", "frame", "gif"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An exported file."""
    suffix = {"h264": ".mp4", "frame": ".png", "gif": ".gif"}[request.param]
    target = tmp_path / f"made{suffix}"
    frames = np.random.default_rng(0).uniform(-1, 1, (1 if request.param == "frame" else 6, 64, 64, 3))
    with open_export(request.param, target, (64, 64)) as writer:
        for frame in frames.astype(np.float32):
            writer.write(frame)
    return target


def state(path: Path) -> tuple[dict, str]:
    """The active manifest, and what checking it found."""
    with c2pa.Reader(path) as reader:
        store = json.loads(reader.json())
        return store["manifests"][store["active_manifest"]], store.get("validation_state", "")


def test_a_signed_file_says_what_made_it_until_it_is_changed(file: Path) -> None:
    before = file.stat().st_size
    sign(file, "a red ball")
    assert file.stat().st_size > before and [path.name for path in file.parent.iterdir()] == [file.name]
    manifest, found = state(file)
    assert manifest["title"] == "a red ball" and found == "Valid"  # "Trusted" would need a certificate that is known
    actions = next(one for one in manifest["assertions"] if one["label"].startswith("c2pa.actions"))["data"]["actions"]
    assert actions[0]["digitalSourceType"] == SOURCE_TYPE and actions[0]["action"] == "c2pa.created"
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    with contextlib.suppress(c2pa.C2paError):  # where the change broke the file itself
        assert state(file)[1] == "Invalid"


def test_a_certificate_of_ones_own_signs(file: Path, tmp_path: Path) -> None:
    chain, key = _self_made()
    (tmp_path / "chain.pem").write_bytes(chain)
    (tmp_path / "key.pem").write_bytes(key)
    sign(file, "mine", tmp_path / "chain.pem", tmp_path / "key.pem")
    assert state(file)[1] == "Valid"
    (tmp_path / "key.pem").write_bytes(_self_made()[1])  # of another certificate
    content = file.read_bytes()
    with pytest.raises(InputError, match="could not be signed"):
        sign(file, "not mine", tmp_path / "chain.pem", tmp_path / "key.pem")
    assert file.read_bytes() == content


def test_a_full_disk_and_a_key_that_is_none_leave_the_file_as_it_was(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    content = file.read_bytes()
    with small_files(100), pytest.raises(OutputError, match="free some space"):
        sign(file, "a red ball")
    chain, _ = _self_made()
    (tmp_path / "chain.pem").write_bytes(chain)
    (tmp_path / "key.pem").write_bytes(b"no key")
    with pytest.raises(InputError, match=r"^The private key cannot be read; give an unencrypted PEM file\.$"):
        sign(file, "mine", tmp_path / "chain.pem", tmp_path / "key.pem")
    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(OutputError, match="There is no permission to write"):
        sign(file, "a red ball")
    monkeypatch.undo()
    assert file.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chain.pem", "key.pem", file.name]


def test_what_cannot_be_signed_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="carries no Content Credentials"):
        check_credentials(tmp_path / "a.mkv", None, None)
    with pytest.raises(InputError, match="two PEM files"):
        check_credentials(tmp_path / "a.mp4", tmp_path / "x.pem", None)
    with pytest.raises(InputError, match="There is no file"):
        check_credentials(tmp_path / "a.mp4", tmp_path / "x.pem", tmp_path / "y.pem")
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(InputError, match=r"pip install magi-lite\[credentials\]"):
        check_credentials(tmp_path / "a.mp4", None, None)
