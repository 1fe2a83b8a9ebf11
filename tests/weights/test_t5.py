"""The text encoder's folder: every published form, quantized or not, and what must never be executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magi_lite.errors import CheckpointError, OutputError
from magi_lite.weights.t5 import fingerprint, load_t5, load_tokenizer
from tests.disk import small_files

PROMPT = "a red ball falls down slowly"


@pytest.fixture
def folder(model_root: Path, tmp_path: Path) -> Path:
    """A T5 folder of one's own: tokenizer.json, config.json, model.safetensors."""
    return shutil.copytree(model_root / "ckpt" / "t5" / "demo", tmp_path / "t5")


def embedding(folder: Path, scheme: str = "float32") -> torch.Tensor:
    with torch.inference_mode():
        return load_t5(folder, scheme).encode([PROMPT])[0]


def as_pickle(folder: Path, *, shards: int = 1, old: bool = False, extra: bool = True) -> None:
    """Weights as they were published: .bin files that hold the decoder, too, and the table of words twice."""
    state = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    if extra:
        state |= {"encoder.embed_tokens.weight": state["shared.weight"], "lm_head.weight": torch.ones(2, 2)}
        state |= {"decoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2, 2)}
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not old)
        return
    names, weight_map = sorted(state), {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        torch.save({name: state[name] for name in names[number::shards]}, folder / file)
        weight_map |= dict.fromkeys(names[number::shards], file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


FORMS: dict[str, Callable[[Path], object]] = {
    "one pickle": lambda folder: as_pickle(folder),
    "pickled shards": lambda folder: as_pickle(folder, shards=3),
    "a pickle of long ago": lambda folder: as_pickle(folder, old=True),
    "a whole T5 in safetensors": lambda folder: save_file(
        load_file(folder / "model.safetensors") | {"decoder.final_layer_norm.weight": torch.ones(64)},
        folder / "model.safetensors",
    ),
    "only the encoder's name for the table": lambda folder: _rename_table(folder),
}


def _rename_table(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state = {name.replace("shared.weight", "encoder.embed_tokens.weight"): t.clone() for name, t in state.items()}
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_embedding(form: str, folder: Path) -> None:
    expected = embedding(folder)
    FORMS[form](folder)
    assert torch.equal(embedding(folder), expected)


def test_pickles_are_converted_once_for_each_type(folder: Path) -> None:
    as_pickle(folder, shards=2)
    first = embedding(folder, "bf16")
    converted = folder / "converted-bfloat16"
    stamps = {path: path.stat().st_mtime_ns for path in converted.iterdir()}
    assert len(stamps) == 3
    assert {tensor.dtype for path in converted.glob("*.safetensors") for tensor in load_file(path).values()} == {
        torch.bfloat16
    }
    for path in folder.glob("*.bin"):
        path.write_bytes(b"no longer read")
    assert torch.equal(embedding(folder, "bf16"), first)
    assert {path: path.stat().st_mtime_ns for path in converted.iterdir()} == stamps


def test_a_killed_conversion_leaves_nothing_that_loads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_pickle(folder, shards=2)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", die)
        with pytest.raises(KeyboardInterrupt):
            embedding(folder, "bf16")
    assert not (folder / "converted-bfloat16").exists()
    assert embedding(folder, "bf16").shape == (7, 64)


@pytest.mark.parametrize(("scheme", "limit"), [("bf16", 0.03), ("int8", 0.12), ("nf4", 0.6)])
def test_quantized_encoders_stay_near(scheme: str, limit: float, folder: Path) -> None:
    """On random weights; the error of trained ones is smaller. Also: the output is float32 and finite."""
    plain, other = embedding(folder), embedding(folder, scheme)
    error = ((other - plain).norm() / plain.norm()).item()
    assert other.dtype == torch.float32
    assert 0 < error < limit


class Trap:
    """Were this pickle executed, a file would appear."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (os.mkdir, (str(self.path),))


def test_pickles_are_never_executed(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    trap = tmp_path / "executed"
    torch.save({"shared.weight": Trap(trap)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds more than tensors and is not executed"):
        load_t5(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"shared.weight": Trap(trap)}))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin (holds more than tensors|is damaged)"):
        load_t5(folder)
    assert not trap.exists()


def test_spiece_model_is_read(folder: Path, tmp_path: Path) -> None:
    """As T5 was published: a SentencePiece model and no tokenizer.json."""
    import sentencepiece

    words = f"{PROMPT} and the green box moves to the left while a dog runs".split()
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(" ".join(words[i:] + words[:i]) for i in range(len(words))) * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "spiece"),
        vocab_size=48,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(PROMPT)["input_ids"]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    assert ids == [*pieces.encode(PROMPT), 1]  # the end token behind
    assert 2 not in ids


def test_fingerprints_tell_encoders_apart(folder: Path) -> None:
    first = fingerprint(folder, "bf16")
    assert fingerprint(folder, "bf16") == first
    assert fingerprint(folder, "nf4") != first
    state = load_file(folder / "model.safetensors")
    changed = {name: tensor.clone() for name, tensor in state.items()}
    changed["encoder.final_layer_norm.weight"][3] += 1
    save_file(changed, folder / "model.safetensors")
    assert fingerprint(folder, "bf16") != first


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        r"Found no text encoder weights in .*: looked for \*\.safetensors and pytorch_model\.bin",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "There is no tokenizer in .*tokenizer.json and spiece"),
    "tokenizer damaged": (lambda f: (f / "tokenizer.json").write_text("<html>"), r"The tokenizer in .* cannot be read"),
    "no configuration": (lambda f: (f / "config.json").unlink(), r"config\.json is not a T5 configuration"),
    "configuration damaged": (lambda f: (f / "config.json").write_text("[1"), r"is not a T5 configuration"),
    "another model": (
        lambda f: (f / "config.json").write_text('{"model_type": "bert"}'),
        r"is of a bert model where T5 is needed",
    ),
    "missing tensor": (
        lambda f: save_file(
            {n: t.clone() for n, t in load_file(f / "model.safetensors").items() if "final" not in n},
            f / "model.safetensors",
        ),
        r"Tensor encoder\.final_layer_norm\.weight \(64,\) is missing from .*the T5 encoder",
    ),
    "surprise": (
        lambda f: save_file(load_file(f / "model.safetensors") | {"surprise": torch.ones(1)}, f / "model.safetensors"),
        r"Tensor surprise \(1,\) in .* is unexpected",
    ),
    "pickle cut": (
        lambda f: (as_pickle(f), (f / "pytorch_model.bin").write_bytes((f / "pytorch_model.bin").read_bytes()[:9000])),
        r"pytorch_model\.bin is damaged or cut short",
    ),
    "pickle of a list": (
        lambda f: ((f / "model.safetensors").unlink(), torch.save([torch.ones(1)], f / "pytorch_model.bin")),
        r"does not hold a table of tensors",
    ),
    "pickled shard missing": (
        lambda f: (as_pickle(f, shards=2), (f / "pytorch_model-00002-of-00002.bin").unlink()),
        r"The shard pytorch_model-00002-of-00002\.bin .* is missing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_every_accident_has_its_sentence(case: str, folder: Path) -> None:
    spoil, sentence = BAD[case]
    spoil(folder)
    with pytest.raises(CheckpointError, match=sentence):
        load_t5(folder)


def test_a_full_disk_is_what_is_said_of_a_conversion(folder: Path) -> None:
    as_pickle(folder, shards=2)
    with small_files(2000), pytest.raises(OutputError, match="The disk is full or limited at"):
        load_t5(folder, "bf16")
    assert not (folder / "converted-bfloat16").exists()
    assert embedding(folder, "bf16").shape == (7, 64)
    assert [path.name for path in folder.iterdir() if "convert" in path.name] == ["converted-bfloat16"]
