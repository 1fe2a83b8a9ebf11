"""What leaving the padding out of a prompt saves: T5 on the prompt's own tokens against the published 800.

`python benchmarks/text_trim.py [--repeats N] [--out FILE]`

The encoder has the published one's proportions (gated GELU, heads x 64 = width, relative positions) at a size that two
cores can run: width 512, 6 blocks, random weights. Both forms take turns in one run, on one thread, in CPU seconds of
that thread. `error` is the largest relative difference of a prompt's rows: float32 rounding, no more.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import RESULTS, save

PADDED = 800
LENGTHS = (20, 60, 120, 240)
"""Tokens of a short prompt, a usual one, a long one and a very long one."""


def measure(repeats: int) -> list[dict[str, float]]:
    """Seconds of both forms, their ratio and their difference for every length."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=1000, d_model=512, d_kv=64, d_ff=1280, num_layers=6, num_heads=8, feed_forward_proj="gated-gelu"
    )
    model = T5EncoderModel(config).eval()
    rows = []
    for length in LENGTHS:
        ids = torch.randint(3, 1000, (1, length))
        padded = torch.nn.functional.pad(ids, (0, PADDED - length))
        mask = (torch.arange(PADDED)[None] < length).long()
        trimmed_seconds, padded_seconds = [], []
        for _ in range(repeats + 1):  # the first of each warms up
            began = time.thread_time()
            trimmed = model(input_ids=ids).last_hidden_state
            trimmed_seconds.append(time.thread_time() - began)
            began = time.thread_time()
            whole = model(input_ids=padded, attention_mask=mask).last_hidden_state[:, :length]
            padded_seconds.append(time.thread_time() - began)
        few, many = (statistics.median(seconds[1:]) for seconds in (trimmed_seconds, padded_seconds))
        error = ((trimmed - whole).norm() / whole.norm()).item()
        rows.append({"tokens": length, "trimmed_s": few, "padded_s": many, "ratio": many / few, "error": error})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "text_trim.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        rows = measure(arguments.repeats)
    for row in rows:
        print("{tokens:4.0f} tokens: {ratio:5.1f} times cheaper than 800, difference {error:.1e}".format(**row))
    result = {
        "machine": f"one thread of a {platform.machine()} CPU, torch {torch.__version__}",
        "padded_to": PADDED,
        "prompts": [{key: float(f"{value:.4g}") for key, value in row.items()} for row in rows],
    }
    save(arguments.out, result)


if __name__ == "__main__":
    main()
