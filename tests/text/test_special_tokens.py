"""Special tokens: the goldens exactly, and the order, count and cut on fresh random tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from magi_lite.errors import CheckpointError, InputError
from magi_lite.request.request import SpecialTokens
from magi_lite.text.special_tokens import STYLES, SpecialTokenTable, null_caption, wanted_tokens
from tests.parity import text as parity

ROOT = Path(__file__).parents[1] / "goldens"


def write_table(path: Path, channels: int = 16, seed: int | None = None) -> dict[str, np.ndarray]:
    """A table as the published file has it: float64, one row, one row, a hundred rows."""
    generator = np.random.default_rng(seed)
    rows = {"caption_token": 1, "logo_token": 1, "other_tokens": 100}
    arrays = {name: generator.standard_normal((count, channels)) for name, count in rows.items()}
    np.savez(path, **arrays)
    return arrays


@pytest.fixture
def table(tmp_path: Path) -> SpecialTokenTable:
    write_table(tmp_path / "special_tokens.npz")
    return SpecialTokenTable.load(tmp_path / "special_tokens.npz")


def test_goldens() -> None:
    results = list(parity.run(ROOT / "text", ROOT))
    assert len(results) > 200
    assert [result.line() for result in results if not result.passed] == []


def test_rounding_is_float16_in_one_step(tmp_path: Path) -> None:
    """Over float32 some values would be rounded twice; 1 + 2^-11 + 2^-40 is one of them."""
    arrays = write_table(tmp_path / "a.npz")
    arrays["other_tokens"][1, 0] = 1 + 2.0**-11 + 2.0**-40
    np.savez(tmp_path / "a.npz", **arrays)
    table = SpecialTokenTable.load(tmp_path / "a.npz")
    assert table.other_tokens[1, 0].item() == 1 + 2.0**-10
    assert np.array_equal(table.other_tokens.numpy(), arrays["other_tokens"].astype(np.float16))


def test_the_last_pushed_stands_first(table: SpecialTokenTable) -> None:
    words = torch.randn(5, 16)
    tokens = SpecialTokens(quality=True, duration=True, styles=("anime", "static"))
    result = table.caption(words, tokens, chunks_remaining=3, max_length=20)
    rows = [table.other_tokens[row].float() for row in (7 + 3 - 1, 16, 1, 2)]  # duration, anime, quality, static
    assert torch.equal(result, torch.cat([torch.stack(rows), words]))


@pytest.mark.parametrize(("remaining", "row"), [(1, 7), (2, 8), (8, 14), (9, 14), (1000, 14), (None, 14)])
def test_duration_counts_to_eight(table: SpecialTokenTable, remaining: int | None, row: int) -> None:
    result = table.caption(torch.zeros(1, 16), SpecialTokens(quality=False), remaining, 9)
    assert torch.equal(result[0], table.other_tokens[row].float())


def test_long_captions_lose_their_end(table: SpecialTokenTable) -> None:
    words = torch.randn(10, 16)
    result = table.caption(words, SpecialTokens(), 2, max_length=10)
    assert torch.equal(result[2:], words[:8])


def test_order_of_styles_does_not_matter() -> None:
    a, b = SpecialTokens(styles=tuple(STYLES)), SpecialTokens(styles=tuple(reversed(STYLES)))
    assert wanted_tokens(a) == wanted_tokens(b)
    assert wanted_tokens(SpecialTokens()) == ("quality", "duration")
    assert wanted_tokens(SpecialTokens(quality=False, duration=False)) == ()


def test_safetensors_read_the_same(tmp_path: Path, table: SpecialTokenTable) -> None:
    arrays = np.load(tmp_path / "special_tokens.npz")
    save_file({name: torch.from_numpy(arrays[name]) for name in arrays.files}, tmp_path / "t.safetensors")
    assert torch.equal(SpecialTokenTable.load(tmp_path / "t.safetensors").other_tokens, table.other_tokens)


def test_null_caption_is_the_first_fifty_learned_rows(table: SpecialTokenTable) -> None:
    learned = torch.randn(70, 16)
    assert torch.equal(null_caption(learned), learned[:50])
    assert torch.equal(null_caption(learned[:20]), learned[:20])
    negative = null_caption(learned, table)
    assert negative.shape == (50, 16)
    assert torch.equal(negative[4:], learned[:46])
    assert torch.equal(negative[:2], table.other_tokens[[4, 0]].float())  # borders, transition
    assert torch.equal(negative[2:4], torch.cat([table.logo_token, table.caption_token]).float())


def bad_pickle(path: Path) -> None:
    np.savez(path, other_tokens=np.array([{"a": 1}], dtype=object))


def other_file(path: Path) -> None:
    write_table(path, channels=4096, seed=1)


BAD_FILES = {
    "missing": (lambda path: None, "There is no special-token file"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "html": (lambda path: path.write_text("<html>not found</html>"), "cannot be read"),
    "cut": (lambda path: (write_table(path), path.write_bytes(path.read_bytes()[:2000])), "cannot be read"),
    "pickle": (bad_pickle, "cannot be read"),
    "other arrays": (lambda path: np.savez(path, a=np.zeros(3)), "lacks caption_token, logo_token, other_tokens"),
    "few rows": (
        lambda path: np.savez(
            path, caption_token=np.zeros((1, 4)), logo_token=np.zeros((1, 4)), other_tokens=np.zeros((5, 4))
        ),
        "other_tokens in",
    ),
    "not the published one": (other_file, "is not the published special_tokens.npz"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_have_their_sentence(case: str, tmp_path: Path) -> None:
    make, sentence = BAD_FILES[case]
    path = tmp_path / "special_tokens.npz"
    make(path)
    with pytest.raises(CheckpointError, match=sentence):
        SpecialTokenTable.load(path)


def test_wrong_use_has_its_sentence(table: SpecialTokenTable) -> None:
    with pytest.raises(InputError, match=r"There is no style 'sepia'; choose from static"):
        wanted_tokens(SpecialTokens(styles=("sepia",)))
    with pytest.raises(CheckpointError, match="special tokens have 16 channels and the caption 8"):
        table.push(torch.zeros(2, 8), ("quality",))
    with pytest.raises(InputError, match="counts the remaining seconds from 1, not 0"):
        table.push(torch.zeros(2, 16), ("duration",), 0)
