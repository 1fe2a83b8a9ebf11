"""The text encoder's folder: every published form, quantized or not, and what must never be executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from magi_lite.errors import CheckpointError, LoadCancelled, OutputError
from magi_lite.weights.t5 import fingerprint, load_t5, load_tokenizer
from magi_lite.weights.text_files import conversion_bytes
from quant.storage.lock import FileLock
from quant.storage.shards import Checkpoint
from tests.disk import small_files

PROMPT = "a red ball falls down slowly"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A T5 folder of one's own: tokenizer.json, config.json, model.safetensors."""
    return shutil.copytree(tiny_model / "ckpt" / "t5" / "demo", tmp_path / "t5")


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


def edit_tokenizer(folder: Path, number: str) -> None:
    """Give a piece of the vocabulary a text for its number."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["</s>"] = number
    path.write_text(json.dumps(content))


def test_a_file_that_cannot_be_read_has_no_fingerprint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("magi_lite.weights.identity.open_plain", denied)
    with pytest.raises(CheckpointError, match=r"\.json cannot be read: Permission denied; make it readable, or"):
        fingerprint(folder, "bf16")


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
    "vocabulary of the wrong kind": (
        lambda f: edit_tokenizer(f, "9" * 9000),
        r"^The tokenizer in .* cannot be read \(.{100,200}…\); download it again\.$",
    ),
    "pickled shard of a name that no file has": (
        lambda f: (
            as_pickle(f, shards=2),
            (f / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "x" * 999}})),
        ),
        r"names x{80}, which is not a file of its own folder; it is not trusted\.$",
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


# --- converting pickled weights --------------------------------------------------------------------------------------

CONVERTING = """
import sys
from pathlib import Path
from magi_lite.weights.pickles import converted

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) << 10

converted(Path(sys.argv[2]))  # a small one: libraries, pools and caches are there now
before, peak, told = anonymous(), 0, []
def progress(done, total):
    global peak
    peak = max(peak, anonymous() - before)
    told.append((done, total))
converted(Path(sys.argv[1]), progress)
print(peak, *told[-1])
"""
LARGEST = 16 << 20
"""Bytes of a float32 tensor of the synthetic encoder, of which there are 12 in 3 shards."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_conversion_holds_one_tensor(tmp_path: Path) -> None:
    """192 MiB in three shards of four tensors: at most one of them and the 16-bit copies on their way are in memory."""
    weight_map, sums = {}, {}
    for number in range(3):
        file = f"pytorch_model-{number + 1:05}-of-00003.bin"
        state = {f"encoder.block.{number}.{part}": torch.randn(LARGEST // 4096, 1024) for part in range(4)}
        state |= {f"decoder.{number}": torch.randn(LARGEST // 4096, 1024)}  # not converted
        torch.save(state, tmp_path / file)
        weight_map |= dict.fromkeys(state, file)
        sums |= {name: tensor.to(torch.bfloat16) for name, tensor in state.items() if "encoder" in name}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "small").mkdir()
    torch.save({"encoder.a": torch.ones(512, 512)}, tmp_path / "small" / "pytorch_model.bin")
    command = [sys.executable, "-c", CONVERTING, str(tmp_path), str(tmp_path / "small")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    peak, written, total = map(int, done.stdout.split())
    assert peak < 2.5 * LARGEST + (1 << 20), f"{peak / LARGEST:.1f} tensors"
    assert written == total == 12 * LARGEST // 2
    assert conversion_bytes(tmp_path) == 0
    stored = Checkpoint.open(tmp_path / "converted-bfloat16")
    assert stored.tensors.keys() == sums.keys()
    assert all(torch.equal(stored.read(name), tensor) for name, tensor in sums.items())
    assert sorted(path.name for path in tmp_path.iterdir() if "convert" in path.name) == ["converted-bfloat16"]


def test_float32_reads_the_pickles_themselves(folder: Path) -> None:
    """No second copy on the disk, and none in memory: the tensors are the file."""
    expected = embedding(folder)
    as_pickle(folder, shards=2)
    assert torch.equal(embedding(folder), expected)
    assert not any("convert" in path.name for path in folder.iterdir())


def test_what_a_killed_conversion_left_is_taken_up_or_removed(folder: Path) -> None:
    """Shards that were whole are kept; half ones, other conversions and older versions' leftovers go."""
    expected = embedding(folder, "bf16")
    as_pickle(folder, shards=3)
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom magi_lite.weights import pickles\n"
        "left = [2]\n"
        "really = pickles.write_made\n"
        "def write(path, *rest):\n"
        "    really(path, *rest)\n    left[0] -= 1\n    left[0] or os.kill(os.getpid(), 9)\n"
        "pickles.write_made = write\n"
        "pickles.converted(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -9
    work = folder / ".converting-bfloat16"
    kept = {path: path.stat().st_mtime_ns for path in work.glob("*.safetensors")}
    assert len(kept) == 2 and not (folder / "converted-bfloat16").exists()
    (work / ".model-00003-of-00003.1234-0123abcd.tmp.safetensors").write_bytes(b"half")
    (folder / ".converting-k3j2h1").mkdir()  # as the version before named them
    (folder / ".converting-k3j2h1" / "model-00001-of-00003.safetensors").write_bytes(b"half")
    assert torch.equal(embedding(folder, "bf16"), expected)
    assert [path.name for path in sorted(folder.iterdir()) if "convert" in path.name] == ["converted-bfloat16"]
    made = folder / "converted-bfloat16"
    assert {made / path.name: stamp for path, stamp in kept.items()}.items() <= {
        path: path.stat().st_mtime_ns for path in made.iterdir()
    }.items()
    assert not [path.name for path in made.iterdir() if path.name.startswith(".") or path.name == "source.json"]


def test_a_conversion_of_other_pickles_is_begun_anew(folder: Path) -> None:
    as_pickle(folder, shards=2)
    work = folder / ".converting-bfloat16"
    work.mkdir()
    (work / "source.json").write_text("[]")
    save_file({"shared.weight": torch.ones(1)}, work / "model-00001-of-00002.safetensors")
    assert embedding(folder, "bf16").shape == (7, 64)


def test_two_conversions_at_once_wait_for_each_other(folder: Path) -> None:
    """The second waits, can be stopped while it does, and finds what the first made."""
    as_pickle(folder, shards=2)
    lock = FileLock(folder / ".converting-bfloat16.lock", "the text encoder")
    with pytest.raises(LoadCancelled):
        load_t5(folder, "bf16", cancelled=lambda: True)
    assert not (folder / ".converting-bfloat16").exists()
    threading.Timer(0.3, lock.release).start()
    assert embedding(folder, "bf16").shape == (7, 64)


def test_stopping_a_conversion_takes_one_tensor(folder: Path) -> None:
    as_pickle(folder)
    asked: list[bool] = []

    def cancelled() -> bool:
        asked.append(True)
        return len(asked) > 4

    with pytest.raises(LoadCancelled):
        load_t5(folder, "bf16", cancelled=cancelled)
    assert len(asked) == 5
    assert embedding(folder, "bf16").shape == (7, 64)


def test_a_folder_that_cannot_be_written_is_read_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = embedding(folder, "bf16")
    as_pickle(folder)
    really = os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:
        if str(path).startswith(str(folder)) and flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied")
        return really(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    assert torch.equal(embedding(folder, "bf16"), expected)
