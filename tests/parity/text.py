"""Text goldens: caption cleaning, special tokens in front of captions, the null caption."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from magi_lite.request.request import SpecialTokens
from magi_lite.text.cleaning import clean_once, clean_prompt
from magi_lite.text.special_tokens import NEGATIVE_TOKENS, SpecialTokenTable, null_caption
from tests.parity.report import CaseResult, compare, exact, unclaimed

KIND = "text"
_NAMES = {
    "CAPTION_TOKEN": "caption",
    "LOGO_TOKEN": "logo",
    "TRANS_TOKEN": "transition",
    "HQ_TOKEN": "quality",
    "STATIC_FIRST_FRAMES_TOKEN": "static",
    "DYNAMIC_FIRST_FRAMES_TOKEN": "dynamic",
    "BORDERNESS_TOKEN": "borders",
    "THREE_D_MODEL_TOKEN": "3d",
    "TWO_D_ANIME_TOKEN": "anime",
    "DURATION_TOKEN": "duration",
}
_SWITCHES = {
    "PAD_STATIC": "static",
    "PAD_DYNAMIC": "dynamic",
    "PAD_BORDERNESS": "borders",
    "PAD_HQ": "quality",
    "PAD_THREE_D_MODEL": "3d",
    "PAD_TWO_D_ANIME": "anime",
    "PAD_DURATION": "duration",
}
Outputs = dict[str, torch.Tensor]
"""Padded captions and their masks, named as in the sidecar."""


def run(folder: Path, root: Path) -> Iterator[CaseResult]:
    """Every JSON of the folder is either a list of cleaning cases or a sidecar of embedding cases."""
    claimed = {"special_tokens_tiny.npz"}
    for path in sorted(folder.glob("*.json")):
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        claimed.add(path.name)
        if isinstance(sidecar.get("cases"), list):
            yield from _cleaning_cases(sidecar)
        elif "file" in sidecar:
            claimed |= {sidecar["file"], sidecar["special_tokens"]}
            yield from _embedding_cases(folder, sidecar)
        else:
            yield CaseResult(KIND, path.name, False, {}, {}, "a sidecar of a kind not known")
    yield from unclaimed(KIND, folder, claimed)


def _cleaning_cases(sidecar: dict[str, Any]) -> Iterator[CaseResult]:
    functions = {"clean_caption": clean_once, "text_preprocessing": clean_prompt}
    for number, case in enumerate(sidecar["cases"]):
        for name, golden in case.items():
            if name == "caption":
                continue
            if name not in functions:
                yield CaseResult(KIND, f"cleaning {number} {name}", False, {}, {}, "a function not known")
                continue
            ours = functions[name](case["caption"])
            note = "" if ours == golden else f"{case['caption']!r}: {ours!r} instead of {golden!r}"
            yield exact(KIND, f"cleaning {number} {name}", ours == golden, note)


def _embedding_cases(folder: Path, sidecar: dict[str, Any]) -> Iterator[CaseResult]:
    tensors = load_file(folder / sidecar["file"])
    table = SpecialTokenTable.load(folder / sidecar["special_tokens"])
    for name, case in sidecar["cases"].items():
        adapter = _ADAPTERS.get(case["function"])
        if adapter is None:
            yield CaseResult(KIND, name, False, {}, {}, f"function {case['function']} is not known")
            continue
        inputs = {key: tensors[entry["tensor"]] for key, entry in case["inputs"].items()}
        try:
            ours = adapter(case, inputs, table)
        except KeyError as error:
            yield CaseResult(KIND, name, False, {}, {}, f"argument {error} is not known")
            continue
        for key, entry in case["outputs"].items():
            tolerance = entry.get("tolerance", case.get("tolerance"))
            if key not in ours or tolerance is None:
                yield CaseResult(KIND, f"{name}.{key}", False, {}, {}, "an output or tolerance not known")
                continue
            golden = tensors[entry["tensor"]]
            yield compare(KIND, f"{name}.{key}", ours[key].to(golden.dtype), golden, tolerance)


def _pushed(rows: torch.Tensor, valid: int, push: Callable[[torch.Tensor], torch.Tensor], length: int) -> Outputs:
    """What we do (only valid rows, no padding), laid out as the official program's padded caption and mask.

    The padding rows behind the valid ones are the padded input's own, moved right: pushing onto the padded input must
    give the same valid rows as pushing onto the valid ones alone.
    """
    padded, lean = push(rows), push(rows[:valid])
    result = padded.clone()
    result[: len(lean)] = lean
    return {"embs": result, "masks": (torch.arange(length) < len(lean)).float()}


def _stack(chunks: list[Outputs]) -> Outputs:
    return {key: torch.stack([chunk[key] for chunk in chunks])[None] for key in chunks[0]}


def _pad_special_token(case: dict[str, Any], inputs: dict[str, torch.Tensor], table: SpecialTokenTable) -> Outputs:
    names = tuple(_NAMES[key] for key in case["args"]["special_token_keys"])
    captions = inputs["caption_embs"]
    length, chunks = case["caption_max_length"], captions.shape[1]
    batch = []
    for row in range(captions.shape[0]):
        outputs = []
        for chunk in range(chunks):
            valid = int(inputs["emb_masks"][row, chunk].sum()) if "emb_masks" in inputs else captions.shape[2]

            def push(embedding: torch.Tensor, remaining: int = chunks - chunk) -> torch.Tensor:
                return table.push(embedding, names, remaining, length)

            outputs.append(_pushed(captions[row, chunk], valid, push, length))
        batch.append(_stack(outputs))
    return {key: torch.cat([one[key] for one in batch]) for key in batch[0]}


def _txt_embeddings(case: dict[str, Any], inputs: dict[str, torch.Tensor], table: SpecialTokenTable) -> Outputs:
    """Chunks of the prefix have the null caption with nothing valid; the others the prompt with its tokens."""
    chosen = [_SWITCHES[name] for name, value in case["env"].items() if value.lower() in ("1", "true")]
    styles = tuple(name for name in chosen if name not in ("quality", "duration"))
    tokens = SpecialTokens(quality="quality" in chosen, duration="duration" in chosen, styles=styles)
    length, chunks, clean = case["caption_max_length"], case["args"]["infer_chunk_num"], case["args"]["clean_chunk_num"]
    null = inputs["null_emb"].reshape(-1, inputs["null_emb"].shape[-1])
    given = inputs["caption_embs"]
    mask = inputs["emb_masks"].reshape(-1, length)
    if given.shape[0] != 1:
        raise KeyError("a batch of prompts")
    outputs = []
    for chunk in range(chunks):
        if chunk < clean:
            outputs.append({"embs": null, "masks": torch.zeros(length)})
            continue
        own = min(chunk - clean, given.shape[1] - 1)  # one prompt for all chunks, or one for each
        valid = int(mask[min(own, len(mask) - 1)].sum())

        def push(embedding: torch.Tensor, remaining: int = chunks - chunk) -> torch.Tensor:
            return table.caption(embedding, tokens, remaining, length)

        outputs.append(_pushed(given[0, own], valid, push, length))
    return _stack(outputs)


def _null_embeddings(case: dict[str, Any], inputs: dict[str, torch.Tensor], table: SpecialTokenTable) -> Outputs:
    """The learned rows, of which `null_caption` gives the valid ones; the rest is the padded parameter's own."""
    length, chunks = case["caption_max_length"], case["args"]["infer_chunk_num"]
    learned = inputs["null_caption_embedding"].reshape(length, -1)
    negative = case["env"].get("NEG_PROMPT", "0").lower() in ("1", "true")
    valid = null_caption(learned, table if negative else None)
    embeddings = table.push(learned, NEGATIVE_TOKENS, 1, length) if negative else learned.clone()
    embeddings[: len(valid)] = valid
    return _stack([{"embs": embeddings, "masks": (torch.arange(length) < len(valid)).float()} for _ in range(chunks)])


_ADAPTERS = {
    "pad_special_token": _pad_special_token,
    "_process_txt_embeddings": _txt_embeddings,
    "_process_null_embeddings": _null_embeddings,
}
