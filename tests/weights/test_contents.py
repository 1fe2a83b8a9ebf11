"""The names and shapes that files are compared with before a job is queued are those of the networks themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

from magi_lite.dit.model import DiT
from magi_lite.errors import CheckpointError
from magi_lite.models import MODELS, T5Shape, VAEConfig
from magi_lite.vae.model import ViTVAE
from magi_lite.weights import contents
from magi_lite.weights.loader import check_model
from magi_lite.weights.opening import open_model
from magi_lite.weights.text_files import TIED
from quant import convert_folder, scheme_named

from .test_folders import pickled


def shapes(model: torch.nn.Module) -> contents.Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", MODELS)
def test_transformer_and_autoencoder_of_every_published_model(name: str) -> None:
    spec = MODELS[name]
    with torch.device("meta"):
        assert contents.dit_shapes(spec.dit) == shapes(DiT(spec.dit))
        assert contents.vae_shapes(spec.vae) == shapes(ViTVAE(spec.vae))


SMALL = VAEConfig(
    video_size=32, video_length=8, embed_dim=256, depth=2, num_heads=2, z_chans=4, patch_size=8, patch_length=4
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_final_proj": True},
        {"ln_in_attn": False, "qkv_bias": False},
        {"with_cls_token": False, "double_z": False, "mlp_ratio": 2},
    ],
)
def test_autoencoders_of_other_makes(changes: dict[str, object]) -> None:
    config = replace(SMALL, **changes)  # type: ignore[arg-type]
    with torch.device("meta"):
        assert contents.vae_shapes(config) == shapes(ViTVAE(config))


@pytest.mark.parametrize("projection", ["gated-gelu", "relu"])
def test_text_encoders(projection: str) -> None:
    config: dict[str, Any] = {"num_layers": 3, "d_model": 24, "num_heads": 2, "d_kv": 8, "d_ff": 40, "vocab_size": 50}
    with torch.device("meta"):
        model = T5EncoderModel(T5Config(**config, feed_forward_proj=projection, relative_attention_num_buckets=16))
    wanted = shapes(model)
    del wanted[TIED]
    found = contents.t5_shapes(T5Shape.from_published(config), buckets=16, gated=projection != "relu")
    assert found == wanted


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the demo model, and its root."""
    files = open_model("demo")
    root = tmp_path / "models"
    shutil.copytree(files.vae.parents[1], root)
    return root


def change(path: Path, how: str) -> None:
    tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
    name = next(name for name in tensors if name.endswith(("q.weight", "fc1.weight")))
    if how == "lacks one":
        del tensors[name]
    elif how == "has one more":
        tensors["extra.weight"] = torch.ones(2)
    else:
        tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)


SAYS = {"lacks one": "is missing from", "has one more": "is unexpected", "has another shape": "has shape"}


@pytest.mark.parametrize("part", ["transformer", "autoencoder", "text encoder", "pickled text encoder"])
@pytest.mark.parametrize("how", SAYS)
def test_what_does_not_belong_is_named_before_anything_is_loaded(copy: Path, part: str, how: str) -> None:
    files = open_model(copy)
    if part == "pickled text encoder":
        pickled(files.text_encoder)
    contents.check_contents(files)
    place = {"transformer": files.weights, "autoencoder": files.vae}.get(part, files.text_encoder)
    change(sorted([*place.glob("*.safetensors"), *place.glob("*.bin")])[0], how)
    for check in (contents.check_contents, check_model):
        with pytest.raises(CheckpointError, match=SAYS[how]) as refused:
            check(open_model(copy))
        assert str(place) in str(refused.value)


def test_no_torch_is_needed(copy: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from magi_lite.weights.contents import check_contents\n"
        "from magi_lite.weights.opening import open_model\n"
        "check_contents(open_model(Path(sys.argv[1]))); assert 'torch' not in sys.modules"
    )
    for prepare in (Path.exists, pickled):
        prepare(open_model(copy).text_encoder)
        subprocess.run([sys.executable, "-c", code, str(copy)], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_quantized_layers_pass_and_others_are_compared(copy: Path, scheme: str) -> None:
    weights = open_model(copy).weights
    convert_folder(weights, weights.with_name("small"), scheme_named(scheme))
    shutil.rmtree(weights)
    weights.with_name("small").rename(weights)
    contents.check_contents(open_model(copy))
    path = next(weights.glob("*.safetensors"))
    name, data = "y_embedder.null_caption_embedding", path.read_bytes()
    at = data.index(b'"shape":[', data.index(f'"{name}"'.encode())) + 9
    rows, columns = data[at : data.index(b"]", at)].split(b",")
    path.write_bytes(data[:at] + columns + b"," + rows + data[at + len(rows) + 1 + len(columns) :])  # equally long
    with pytest.raises(CheckpointError, match=rf"Tensor {name} .* has shape"):
        contents.check_contents(open_model(copy))
