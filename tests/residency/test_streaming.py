"""Streamed, swapped and dropped models compute what resident ones do, bit for bit, and give their memory back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from magi_lite.dit.model import DiT
from magi_lite.machine import devices
from magi_lite.models import DiTConfig, VAEConfig
from magi_lite.planner.execution import Execution
from magi_lite.planner.pinned import ALIGNMENT
from magi_lite.sampling.kv_store import KVRing
from magi_lite.vae.model import ViTVAE
from magi_lite.weights.residency import Residency, drop_weights
from magi_lite.weights.streaming import LayerStreamer, PackedWeights, PinnedMemory, SwappedModule

TINY = DiTConfig(
    num_layers=3, hidden_size=64, ffn_hidden_size=128, num_attention_heads=4, num_query_groups=2, head_dim=16,
    in_channels=4, out_channels=4, caption_channels=24, caption_max_length=12, gated_linear_unit=False,
    half_channel_vae=False, x_rescale_factor=1.0,
)  # fmt: skip
TINY_VAE = VAEConfig(video_size=32, video_length=8, embed_dim=256, depth=1, num_heads=4, z_chans=4)


@pytest.fixture
def dit() -> DiT:
    torch.manual_seed(int(torch.randint(1 << 30, ()).item()))
    model = DiT(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.requires_grad_(False).eval()


def two_passes(dit: DiT, latents: torch.Tensor, words: torch.Tensor) -> list[torch.Tensor]:
    """Captions, a clean pass that stores, and a window pass that reads."""
    with torch.inference_mode():
        captions = dit.encode_captions(words)
        store = KVRing(2)
        clean = dit(
            latents[:, :, :6], torch.full((1, 1), 0.9), captions.select([0]), first_chunk=0, kv_ranges=((0, 1),),
            store=store, write=True,
        )  # fmt: skip
        window = dit(
            latents, torch.tensor([[0.5, 0.1]]), captions, first_chunk=1, kv_ranges=((0, 2), (0, 3)), store=store
        )
    return [clean, window]


def fresh_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(1, 4, 12, 4, 6), torch.randn(2, 7, 24)


def test_a_streamed_dit_gives_the_same_bits(dit: DiT) -> None:
    inputs = fresh_inputs()
    expected = two_passes(dit, *inputs)
    with Residency(Execution(layers="streamed")) as residency:
        residency.place_dit(dit)
        for _ in range(2):
            for got, want in zip(two_passes(dit, *inputs), expected, strict=True):
                assert torch.equal(got, want)
    assert torch.equal(two_passes(dit, *inputs)[1], expected[1])  # closed: whole and resident on the host


def test_every_linear_of_a_streamed_dit_computes_on_the_device(dit: DiT) -> None:
    """Captions included, whose keys and values are no part of a layer's forward."""
    linears = [m for m in dit.videodit_blocks.layers.modules() if isinstance(m, nn.Linear)]
    with Residency(Execution(layers="streamed")) as residency:
        residency.place_dit(dit)
        home = {linear: linear.weight.untyped_storage().data_ptr() for linear in linears}
        computed_at: dict[nn.Module, int] = {}
        for linear in linears:
            linear.register_forward_pre_hook(
                lambda m, _: computed_at.__setitem__(m, m.weight.untyped_storage().data_ptr())
            )
        two_passes(dit, *fresh_inputs())
        assert set(computed_at) == set(linears)
        assert all(computed_at[linear] != home[linear] for linear in linears)
        assert all(linear.weight.untyped_storage().data_ptr() == home[linear] for linear in linears)


def test_streaming_holds_two_layers_on_the_device_and_every_layer_once_on_the_host(dit: DiT) -> None:
    layers = list(dit.videodit_blocks.layers)
    sizes = [sum(p.numel() * 4 for p in layer.parameters()) for layer in layers]
    streamer = LayerStreamer(layers, "cpu", PinnedMemory())
    assert streamer.device_bytes == 0
    two_passes(dit, *fresh_inputs())
    assert 2 * max(sizes) <= streamer.device_bytes <= 2 * max(sizes) + 2 * 30 * ALIGNMENT
    assert sum(sizes) <= streamer.host_bytes <= sum(sizes) + 3 * 30 * ALIGNMENT
    streamer.close()
    assert streamer.device_bytes == 0


def test_layers_called_in_any_order_are_right() -> None:
    layers = [nn.Linear(5, 5) for _ in range(4)]
    plain = [copy.deepcopy(layer) for layer in layers]
    LayerStreamer(layers, "cpu", PinnedMemory())
    x = torch.randn(3, 5)
    for index in torch.randint(4, (40,)).tolist():
        assert torch.equal(layers[index](x), plain[index](x))


def test_buffers_quantized_types_and_odd_shapes_survive_packing() -> None:
    module = nn.Module()
    module.register_buffer("weight", torch.randn(7, 3).to(torch.float8_e4m3fn))
    module.register_buffer("scale", torch.tensor(0.25))
    module.register_buffer("table", torch.arange(5, dtype=torch.int8))
    module.register_buffer("absent", None)
    module.bias = nn.Parameter(torch.randn(3, dtype=torch.bfloat16), requires_grad=False)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    packed = PackedWeights(module, PinnedMemory())
    device = torch.empty(packed.size, dtype=torch.uint8)
    packed.copy_to(device)
    for buffer in (packed.host, device):
        packed.bind(buffer)
        after = module.state_dict()
        assert after.keys() == before.keys()
        for name, tensor in before.items():
            assert after[name].dtype == tensor.dtype and after[name].shape == tensor.shape
            assert torch.equal(after[name].view(torch.uint8) if tensor.dim() else after[name],
                               tensor.view(torch.uint8) if tensor.dim() else tensor)  # fmt: skip
            assert after[name].untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()


def test_an_error_inside_a_layer_leaves_the_weights_on_the_host() -> None:
    class Fails(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("CUDA out of memory")

    layers = [nn.Linear(4, 4), Fails(4, 4), nn.Linear(4, 4)]
    streamer = LayerStreamer(layers, "cpu", PinnedMemory())
    with pytest.raises(RuntimeError, match="out of memory"):
        nn.Sequential(*layers)(torch.randn(2, 4))
    host = streamer._packed[1].host
    assert layers[1].weight.untyped_storage().data_ptr() == host.untyped_storage().data_ptr()
    streamer.close()


class Recorder:
    """Stands in for CUDA streams: writes down what is asked of them, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[tuple[str, object]] = []
        self.where = ["main"]
        self.events = 0
        monkeypatch.setattr(devices, "new_stream", lambda device: self.Stream(self, "side"))
        monkeypatch.setattr(devices, "current_stream", lambda device: self.Stream(self, "main"))
        monkeypatch.setattr(devices, "record_event", self.record)
        monkeypatch.setattr(devices, "on_stream", self.on)
        original = PackedWeights.copy_to

        def copy_to(packed: PackedWeights, buffer: torch.Tensor, size: int | None = None) -> None:
            self.log.append((f"copy on {self.where[-1]}", packed.module))
            original(packed, buffer, size)

        monkeypatch.setattr(PackedWeights, "copy_to", copy_to)

    class Stream:
        def __init__(self, recorder: Recorder, name: str) -> None:
            self.recorder, self.name = recorder, name

        def wait_event(self, event: tuple[str, int]) -> None:
            self.recorder.log.append((f"{self.name} waits for {event[0]}", event[1]))

    def record(self, stream: Recorder.Stream) -> tuple[str, int]:
        self.events += 1
        self.log.append((f"{stream.name} event", self.events))
        return stream.name, self.events

    def on(self, stream: Recorder.Stream):  # a context manager
        from contextlib import contextmanager

        @contextmanager
        def inside():
            self.where.append(stream.name)
            yield
            self.where.pop()

        return inside()


def test_the_next_layer_is_copied_on_the_side_before_this_one_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)

    class Noted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            recorder.log.append(("compute", self))
            return super().forward(x)

    layers = [Noted(4, 4) for _ in range(4)]
    LayerStreamer(layers, "cpu", PinnedMemory())
    for _ in range(2):
        nn.Sequential(*layers)(torch.randn(2, 4))
    log = recorder.log
    assert all(what != "copy on main" for what, _ in log)
    copies = [which for what, which in log if what == "copy on side"]
    assert copies[:9] == [*layers, *layers, layers[0]], "each layer is copied once per pass"
    for index, layer in enumerate(layers):
        following = layers[(index + 1) % 4]
        assert log.index(("copy on side", following)) < log.index(("compute", layer)) or following is layers[0]
    # Before a buffer is overwritten, the copy waits for the computation that used it; before a layer computes, the
    # computing stream waits for that layer's copy.
    for index in range(2, 4):
        copy_at = log.index(("copy on side", layers[index]))
        used_at = log.index(("compute", layers[index - 2]))
        event = next(which for what, which in log[used_at:] if what == "main event")
        assert ("side waits for main", event) in log[used_at:copy_at]
    for layer in layers:
        copy_at, compute_at = log.index(("copy on side", layer)), log.index(("compute", layer))
        arrived = next(which for what, which in log[copy_at:] if what == "side event")
        assert ("main waits for side", arrived) in log[copy_at:compute_at]


def test_captions_copy_no_more_of_a_layer_than_they_need(dit: DiT, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, words = fresh_inputs()
    expected = two_passes(dit, latents, words)
    copied: list[int] = []
    original = PackedWeights.copy_to

    def copy_to(packed: PackedWeights, buffer: torch.Tensor, size: int | None = None) -> None:
        copied.append(packed.size if size is None else size)
        buffer.fill_(255)  # what is not copied is not a number
        original(packed, buffer, size)

    monkeypatch.setattr(PackedWeights, "copy_to", copy_to)
    with Residency(Execution(layers="streamed")) as residency, torch.inference_mode():
        residency.place_dit(dit)
        layer = dit.videodit_blocks.layers[0]
        needed = sum(p.numel() * 4 for part in layer.caption_modules() for p in part.parameters())
        dit.encode_captions(words)
        assert len(copied) == len(dit.videodit_blocks.layers) + 1  # the last one sends for the first of the next round
        assert all(needed <= size <= needed + 4 * ALIGNMENT for size in copied)
        for got, want in zip(two_passes(dit, latents, words), expected, strict=True):
            assert torch.equal(got, want)


def test_a_layer_that_is_there_in_part_is_completed_where_it_is() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.small = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.small(self.large(x))

        def little(self, x: torch.Tensor) -> torch.Tensor:
            return self.small(x)

    layers = [Two().requires_grad_(False) for _ in range(3)]
    plain = [copy.deepcopy(layer) for layer in layers]
    LayerStreamer(layers, "cpu", PinnedMemory(), part_methods=("little",), part=lambda layer: (layer.small,))
    x = torch.randn(3, 8)
    for index, whole in zip(torch.randint(3, (60,)).tolist(), torch.randint(2, (60,)).tolist(), strict=True):
        name = "forward" if whole else "little"
        assert torch.equal(getattr(layers[index], name)(x), getattr(plain[index], name)(x))


@pytest.mark.parametrize("mode", ["resident", "decoder", "swapped", "cpu"])
def test_every_place_of_the_autoencoder_gives_the_same_bits(mode: str) -> None:
    vae = ViTVAE(TINY_VAE).requires_grad_(False).eval()
    frames, latents = torch.randn(1, 3, 8, 32, 32), torch.randn(1, 4, 2, 4, 4)
    with torch.no_grad():
        expected = vae.encode(frames), vae.decode(latents)
        with Residency(Execution(vae=mode)) as residency:
            residency.place_vae(vae)
            for _ in range(2):
                with residency.vae_at_work("encoder") as working:
                    assert torch.equal(working.encode(frames), expected[0])
                with residency.vae_at_work("decoder") as working:
                    assert torch.equal(working.decode(latents), expected[1])


def test_a_swapped_module_leaves_the_device_even_after_an_error() -> None:
    module = nn.Linear(16, 16)
    swapped = SwappedModule(module, "cpu", PinnedMemory())
    host = swapped._packed.host.untyped_storage().data_ptr()
    with pytest.raises(ValueError), swapped.at_work():
        assert module.weight.untyped_storage().data_ptr() != host
        raise ValueError
    assert module.weight.untyped_storage().data_ptr() == host


def test_the_text_encoder_is_gone_after_its_block_even_if_someone_holds_it() -> None:
    class Encoder:
        def __init__(self) -> None:
            self.model = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32))

    with Residency(Execution()) as residency:
        with residency.text_encoder(Encoder) as encoder:
            assert encoder.model(torch.randn(2, 32)).shape == (2, 32)
        assert sum(p.numel() for p in encoder.model.parameters()) == 0


def test_drop_weights_frees_buffers_too() -> None:
    module = nn.BatchNorm1d(4)
    drop_weights(module)
    assert not list(module.parameters()) and not list(module.buffers())


@pytest.mark.parametrize("dtype", ["float32", "bf16", "fp8"])
def test_a_store_in_shared_host_memory_reads_what_it_wrote(dtype: str) -> None:
    """Keys and values of all layers are cut from blocks like the layers' weights: expected once, one buffer each."""

    class Counted(PinnedMemory):
        expected: list[int]

        def expect(self, sizes) -> None:
            self.expected = list(sizes)

        def take(self, size: int) -> torch.Tensor:
            assert size == self.expected.pop()
            return super().take(size)

    host = Counted(pin=False)
    shared = KVRing(2, dtype=dtype, place="pinned", host=host, layers=3)
    apart = KVRing(2, dtype=dtype, place="pinned")
    with torch.inference_mode():
        for chunk in range(3):
            for layer in range(3):
                key, value = torch.randn(1, 5, 3, 7), torch.randn(1, 5, 3, 7)
                for ring in (shared, apart):
                    ring.write(layer, chunk, key, value)
        for layer in range(3):
            for ours, plain in zip(shared.read(layer, 1, 3), apart.read(layer, 1, 3), strict=True):
                assert torch.equal(ours, plain)
    assert host.expected == [] and shared.host_bytes() == apart.host_bytes()
