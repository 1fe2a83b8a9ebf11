"""The benchmark of a full-size run, with its small configuration: written, loaded, stepped, measured, deleted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import full_size


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's account of memory")
def test_a_small_run_does_all_that_a_full_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_size, "SHARD_BYTES", 1 << 20)  # so that there are several
    shards = []
    real = full_size.in_child

    def looking(root: Path, scheme: str, minutes: float) -> dict:
        shards.extend(path.name for path in (root / full_size.FAMILY).glob("*.safetensors"))
        return real(root, scheme, minutes)

    monkeypatch.setattr(full_size, "in_child", looking)
    out = tmp_path / "out.json"
    arguments = ["--tiny", "--schemes", "nf4", "--folder", str(tmp_path), "--out", str(out)]
    assert full_size.main(arguments) == 0
    found = json.loads(out.read_text())
    assert len(shards) > 1
    measured = found["schemes"]["nf4"]
    assert measured["plan"]["execution"]["scheme"] == "nf4" and measured["plan"]["ram_bytes"] > 0
    assert 0 < measured["peak_anonymous_bytes"] <= measured["peak_resident_bytes"]
    assert 0 < measured["load_seconds"] < measured["seconds_to_first_step"] < measured["seconds_to_first_second"]
    assert measured["plan"]["load_seconds"] > 0 and measured["plan"]["text_seconds"] > 0
    assert measured["plan"]["seconds_to_first_second"] > 0 and measured["text_seconds"] > 0
    again = measured["second_run"]
    assert again["planned_seconds_to_first_second"] != measured["plan"]["seconds_to_first_second"], "it has learned"
    assert again["seconds_to_first_second"] > 0
    assert list(tmp_path.iterdir()) == [out], "weights and runs are deleted"


def test_a_precision_that_takes_too_long_is_ended_and_said(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ["--tiny", "--schemes", "bf16", "--minutes", "0.0001", "--folder", str(tmp_path), "--out", str(out)]
    assert full_size.main(arguments) == 0
    assert "not done after 0.0001 minutes" in json.loads(out.read_text())["schemes"]["bf16"]["error"]
    assert list(tmp_path.iterdir()) == [out], "weights are deleted all the same"


def test_too_little_room_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(full_size, "DISK_GB", 10**9)
    assert full_size.main(["--folder", str(tmp_path), "--out", str(tmp_path / "out.json")]) == 1
    assert "GB of disk and 16 GB of RAM" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_full_size_has_the_published_names_and_shapes() -> None:
    """Without writing it: the configuration that the transformer is written from is the published one's."""
    from magi_lite.models import MODELS, DiTConfig

    config = full_size.published({"model_config": {}, "runtime_config": {}})
    assert DiTConfig.from_published(config["model_config"], "it") == MODELS["4.5B-distill"].dit
