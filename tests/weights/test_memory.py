"""Loading holds the model and one tensor: what was read of the files is let go."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magi_lite.dit.model import DiT, parameter_dtype
from tests.weights.conftest import SMALL

LARGE = replace(SMALL, num_layers=5, hidden_size=1024, ffn_hidden_size=4096, num_attention_heads=8, head_dim=128)
"""About 130 MB in bf16: so much that what is held twice cannot be overlooked."""
LOADING = """
import sys, threading, time
from pathlib import Path
import torch
from magi_lite.planner.execution import Execution
from magi_lite.weights.loader import load_dit_weights
from quant.nf4 import bitsandbytes
from tests.weights.conftest import SMALL
from tests.weights.test_memory import LARGE, held

bitsandbytes()
torch.ones(64, 64) @ torch.ones(64, 64)
load_dit_weights(Path(sys.argv[2]), SMALL, Execution(scheme=sys.argv[3]))  # libraries, pools and caches are there now
before, peak, done = held(), [0, 0], False

def watch():
    while not done:
        now = held()
        for kind in (0, 1):
            peak[kind] = max(peak[kind], now[kind] - before[kind])
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
model = load_dit_weights(Path(sys.argv[1]), LARGE, Execution(scheme=sys.argv[3], dtype=sys.argv[4]))
done = True
watcher.join()
print(*peak, sum(t.numel() * t.element_size() for t in model.state_dict().values()))
"""


def held() -> tuple[int, int]:
    """Bytes of anonymous memory and of mapped files that this process holds."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    anonymous, files = (int(lines[name].split()[0]) << 10 for name in ("RssAnon", "RssFile"))
    return anonymous, files


def write(folder: Path, config: object, shards: int) -> int:
    """Random weights as they are published, in shards as large as each other; bytes of the largest shard."""
    folder.mkdir()
    with torch.device("meta"):
        shapes = DiT(config).state_dict()
    names = sorted(shapes)
    for number in range(shards):
        state = {
            name: torch.randn(shapes[name].shape).to(parameter_dtype(name, torch.bfloat16)) * 0.02
            for name in names[number::shards]
        }
        save_file(state, folder / f"model-{number + 1:05}-of-{shards:05}.safetensors")
    return max(file.stat().st_size for file in folder.iterdir())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(("scheme", "dtype"), [("int8", "bfloat16"), ("nf4", "float32"), ("float32", "float32")])
def test_a_model_is_loaded_in_its_own_size(scheme: str, dtype: str, tmp_path: Path) -> None:
    shard = write(tmp_path / "large", LARGE, 4)
    write(tmp_path / "small", SMALL, 1)
    command = [sys.executable, "-c", LOADING, str(tmp_path / "large"), str(tmp_path / "small"), scheme, dtype]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    anonymous, files, model = map(int, done.stdout.split())
    largest = 4 * LARGE.hidden_size * LARGE.ffn_hidden_size  # the largest tensor in float32
    assert anonymous < model + 4 * largest, f"{anonymous / model:.2f} of the model's {model / 1e6:.0f} MB"
    assert files < shard, f"{files / 1e6:.0f} MB of files are held, the largest shard has {shard / 1e6:.0f}"
