"""The published tables and passes, and that the comparison with goldens can fail.

The public trajectories are of a network of four layers, too large for this repository. Their inputs' shapes, settings,
passes and orders of emission (published_runs.json) are used here with a network of two, whose clean chunks the plain
sampler works out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from magi_lite.models import DiTConfig
from magi_lite.text.special_tokens import SpecialTokenTable
from magi_lite.weights.layout import sampler_settings
from tests.parity import sampler, schedule
from tests.parity.dit_forward import build, load_weights
from tests.parity.report import CaseResult
from tests.sampling.plain import plain_chunks

GOLDENS = Path(__file__).parents[1] / "goldens"
TOKENS = GOLDENS / "text" / "special_tokens_tiny.npz"
RUNS = json.loads((Path(__file__).parent / "published_runs.json").read_text())["cases"]
Sidecar = dict[str, Any]


def test_schedules_are_the_published_ones() -> None:
    results = list(schedule.run(GOLDENS / "schedule", GOLDENS))
    assert len(results) > 400
    assert [r.line() for r in results if not r.passed] == []


def inputs_of(side: Sidecar, name: str) -> dict[str, Tensor]:
    """Fresh noise, captions and prefix in the shapes that the sidecar states; as many words as it says."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    made = {
        entry["tensor"]: torch.randn(entry["shape"], generator=generator)
        for key, entry in side["inputs"].items()
        if key != "emb_masks"
    }
    mask = torch.zeros(side["inputs"]["emb_masks"]["shape"], dtype=torch.int64)
    mask[:, : side["run"]["trace"][-1]["mask_token_counts"][0] - 2] = 1  # quality and duration stand in front
    return made | {side["inputs"]["emb_masks"]["tensor"]: mask}


def outputs_of(side: Sidecar, given: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Clean chunks by the plain sampler, and the published layout of masks."""
    dit = build(DiTConfig.from_published(side["config"]["model_config"]), weights, torch.float32)
    table = SpecialTokenTable.load(TOKENS)
    inputs = {key: given[entry["tensor"]] for key, entry in side["inputs"].items()}
    chunks, prefix = side["run"]["chunk_num"], inputs.get("prefix_video")
    offset = 0 if prefix is None else prefix.shape[2] // 6
    text = inputs["caption_embs"][0, 0, : int(inputs["emb_masks"].sum())]
    made = plain_chunks(
        dit,
        sampler_settings(side["config"]),
        chunks - offset,
        lambda chunk: inputs["noise"][:, :, 6 * chunk : 6 * chunk + 6],
        lambda chunk: table.push(text, ("quality", "duration"), chunks - chunk),
        dit.y_embedder.null_caption_embedding[:50],
        prefix,
    )
    found = {side["outputs"][f"clean.{i}"]["tensor"]: latents.contiguous() for i, latents in enumerate(made)}
    masks = torch.zeros(side["outputs"]["emb_masks_out"]["shape"])
    masks[0, offset:, : len(text) + 2] = 1
    masks[1] = 1
    return found | {side["outputs"]["emb_masks_out"]["tensor"]: masks}


@pytest.fixture(scope="module")
def goldens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the layout of the public goldens, of all published runs."""
    root = tmp_path_factory.mktemp("goldens")
    (root / "ckpt").symlink_to(GOLDENS / "ckpt")
    (root / "sampler").mkdir()
    shutil.copy(TOKENS, root / "sampler")
    document = json.loads((Path(__file__).parent / "published_runs.json").read_text())
    document["special_tokens"] = TOKENS.name
    weights, tensors = load_weights(root / "ckpt", "main"), {}
    for name, side in document["cases"].items():
        side["config"]["model_config"]["num_layers"] = 2
        given = inputs_of(side, name)
        tensors |= given | outputs_of(side, given, weights)
    (root / "sampler" / "sampler.json").write_text(json.dumps(document))
    save_file(tensors, root / "sampler" / document["file"])
    return root


def test_every_published_run_is_ours_pass_for_pass(goldens: Path) -> None:
    results = list(sampler.run(goldens / "sampler", goldens))
    assert {r.name for r in results if "trace" in r.name} == {f"{name} trace" for name in RUNS}
    assert len(results) > 5 * len(RUNS)
    assert [r.line() for r in results if not r.passed] == []


def only(goldens: Path, folder: Path, change: Callable[[Sidecar, dict[str, Any]], Any]) -> list[CaseResult]:
    """The results of one case after a change to its sidecar or tensors."""
    root = folder / "goldens"
    shutil.copytree(goldens / "sampler", root / "sampler")
    (root / "ckpt").symlink_to(GOLDENS / "ckpt")
    path = root / "sampler" / "sampler.json"
    document = json.loads(path.read_text())
    document["cases"] = {CASE: document["cases"][CASE]}
    tensors = load_file(root / "sampler" / document["file"])
    change(document, tensors)
    path.write_text(json.dumps(document))
    save_file(tensors, root / "sampler" / document["file"])
    return list(sampler.run(root / "sampler", root))


CASE = "i2v_4c_w4_s8"
def runtime(document: Sidecar) -> dict[str, Any]:
    return document["cases"][CASE]["config"]["runtime_config"]


CHANGES: dict[str, Callable[[Sidecar, dict[str, Any]], Any]] = {
    "a switch not known": lambda d, t: d["cases"][CASE]["env"].update(PAD_NEW="1"),
    "a switch's value not known": lambda d, t: d["cases"][CASE]["env"].update(PAD_HQ="maybe"),
    "an argument not known": lambda d, t: d["cases"][CASE]["run"]["trace"][0].update(new=1),
    "an input not known": lambda d, t: d["cases"][CASE]["inputs"].update(mask={"tensor": f"{CASE}.in.noise"}),
    "a function not known": lambda d, t: d.update(function="other"),
    "weights not known": lambda d, t: d.update(weights="../ckpt (other)"),
    "guidance not known": lambda d, t: runtime(d).update(cfg_number=2),
    "an output not known": lambda d, t: d["cases"][CASE]["outputs"].update(other={}),
    "another latent": lambda d, t: t[f"{CASE}.out.clean.2"].mul_(1.001),
    "another noise": lambda d, t: t[f"{CASE}.in.noise"].add_(0.01),
    "another special token": lambda d, t: d["cases"][CASE]["env"].update(PAD_DURATION="0"),
    "another range": lambda d, t: runtime(d).update(noise2clean_kvrange=[3, 4, 3, 2]),
    "a chunk emitted early": lambda d, t: d["cases"][CASE]["order_of_emission"].reverse(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_golden_that_differs_fails(goldens: Path, tmp_path: Path, name: str) -> None:
    assert any(not result.passed for result in only(goldens, tmp_path, CHANGES[name]))


def test_a_table_or_file_not_known_fails(tmp_path: Path) -> None:
    document = json.loads((GOLDENS / "schedule" / "schedule.json").read_text())
    changed = {"new_table": [{"a": 1}], "init_t": [document["init_t"][0] | {"new": 1}], "distill_dt": {"table": []}}
    changed["init_intervel"] = [document["init_intervel"][0] | {"interval": [2.0] * 4}]
    (tmp_path / "schedule.json").write_text(json.dumps(changed))
    (tmp_path / "other.json").write_text("{}")
    results = list(schedule.run(tmp_path, tmp_path))
    assert len(results) == 4
    assert not any(result.passed for result in results)
