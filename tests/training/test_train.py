"""A few steps on tiny data: the loss falls, a resumed run is the one that was never stopped, examples are right."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from magi_lite.errors import CheckpointError
from magi_lite.models import CHUNK_LATENT_FRAMES, SCALE_FACTOR
from magi_lite.sampling.schedule import time_grid
from magi_lite.text.vocabulary import Vocabulary
from tests.training.conftest import TINY_DIT, TINY_VAE
from training import checkpoint, diffusion, train_vae
from training.checkpoint import Budget
from training.diffusion import CLEAN, FULL_WINDOWS, WINDOWS, draw_example, flow_loss, grid_time, predict
from training.latents import CAPTION_TOKENS
from training.optim import orthogonalize
from training.precision import half_products
from training.reel import Reel
from training.text_model import CAPTION_LENGTH, SYNONYMS, make_tokenizer, vocabulary, vocabulary_file
from training.train_dit import make_model, train_dit
from training.world import make_scene

WIDTH = CHUNK_LATENT_FRAMES


def settled(model):
    """Gradients and biases aside, a model whose velocity is not zero."""
    torch.nn.init.normal_(model.dit.final_linear.linear.weight, std=0.1)
    return model


def fixed_loss(model, pool):
    """The loss on the same windows with the same noise, whatever was trained in between."""
    with torch.no_grad():
        examples = [draw_example(pool, (4,), 8, torch.Generator().manual_seed(s)) for s in range(4)]
        return sum(flow_loss(model, example, None).item() for example in examples) / 4


def test_loss_of_the_transformer_falls(tmp_path, tiny_pool):
    before = fixed_loss(make_model(TINY_DIT), tiny_pool)
    model = train_dit(tmp_path, Budget(40), pool=tiny_pool, config=TINY_DIT, chunks_per_batch=8, half=False, warm=4)
    assert fixed_loss(model, tiny_pool) < 0.85 * before


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, tiny_pool):
    """Six steps at once, or three and three: the same bits (at a level rate, which does not depend on the budget)."""
    options = {"pool": tiny_pool, "config": TINY_DIT, "chunks_per_batch": 4, "flat": 0.999, "phase": "windows"}
    whole = train_dit(tmp_path / "one", Budget(6), **options, half=False)
    train_dit(tmp_path / "two", Budget(3), **options, half=False)
    resumed = train_dit(tmp_path / "two", Budget(6), **options, half=False)
    first, second = dict(whole.named_parameters()), dict(resumed.named_parameters())
    moved = dict(make_model(TINY_DIT).named_parameters())
    assert any(not torch.equal(first[n], moved[n]) for n in first)
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.fixture(scope="module")
def reel() -> Reel:
    rng = np.random.default_rng()
    pictures = tuple(rng.integers(0, 255, (80, 120, 3), dtype=np.uint8) for _ in range(2))
    return Reel(pictures, most=10, first=6, seed=int(rng.integers(10_000)))


def test_autoencoder_learns_and_a_resumed_run_goes_on(tmp_path, reel):
    options = {"config": TINY_VAE, "batch": 2, "warm": 4, "half": False}
    torch.manual_seed(0)
    untrained = train_vae.make_vae(TINY_VAE)
    x = reel.batch(4, False, torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = (untrained.decode(untrained.encode(x)) - x).square().mean()
    trained = train_vae.train_vae(tmp_path / "one", Budget(40), reel, **options)
    with torch.no_grad():
        after = (trained.decode(trained.encode(x)) - x).square().mean()
    assert after < 0.7 * before
    train_vae.train_vae(tmp_path / "two", Budget(2), reel, **options)
    groups, facts = checkpoint.load(tmp_path / "two" / "vae.safetensors")
    assert facts["step"] == 2 and set(groups) == {"model", "average", "optimizer", "generator"}
    done = train_vae.train_vae(tmp_path / "two", Budget(2), reel, **options)
    for name, tensor in done.state_dict().items():
        assert torch.equal(tensor, groups["average"][name]), "a stage that is done does nothing"
    train_vae.train_vae(tmp_path / "two", Budget(3), reel, **options)
    assert checkpoint.load(tmp_path / "two" / "vae.safetensors")[1]["step"] == 3


def test_refining_the_decoder_leaves_the_latents_alone(tmp_path, reel):
    start = train_vae.make_vae(TINY_VAE).state_dict()
    before = {name: tensor.clone() for name, tensor in start.items()}
    draw, options = train_vae.true_latents(reel, 2), {"config": TINY_VAE, "half": False}
    train_vae.refine_decoder(tmp_path, Budget(2), draw, start, **options)
    vae = train_vae.refine_decoder(tmp_path, Budget(4), draw, start, **options)
    changed = {n for n, t in vae.state_dict().items() if not torch.equal(t, before[n])}
    assert changed and all(name.startswith("decoder.") for name in changed)
    assert checkpoint.load(tmp_path / "tune.safetensors")[1]["step"] == 4


@torch.no_grad()
def test_folding_gives_unit_variance_and_the_same_pictures(reel):
    torch.manual_seed(3)
    vae = train_vae.make_vae(TINY_VAE)
    x = reel.batch(10, False, torch.Generator().manual_seed(4))
    pictures, latents = vae.decode(vae.encode(x)), vae.encode(x)
    mean, log_variance = vae.moments(x)
    train_vae.fold_normalization(vae, latents)
    assert torch.allclose(vae.decode(vae.encode(x)), pictures, atol=2e-4)
    new_mean, new_log_variance = vae.moments(x)
    ratio = new_mean.std((0, 2, 3, 4)) / mean.std((0, 2, 3, 4))
    assert torch.allclose((0.5 * (new_log_variance - log_variance)).exp().mean((0, 2, 3, 4)), ratio, rtol=1e-3)
    folded = vae.encode(x) * SCALE_FACTOR
    assert torch.allclose(folded.std((0, 2, 3, 4)), torch.ones(16), atol=1e-3)
    assert folded.mean((0, 2, 3, 4)).abs().max() < 1e-3

    sizes = train_vae.coarse_to_fine(vae, folded)
    assert sizes.min() == 1
    shown = []  # by leaving each channel out instead of moving it
    for channel in range(16):
        without = folded.clone()
        without[:, channel] = 0
        shown.append((vae.decode(without / SCALE_FACTOR) - pictures).square().mean())
    order = np.argsort(shown)
    assert sizes[order[-4:]].min() > sizes[order[:4]].max()
    train_vae.fold_sizes(vae, sizes)
    assert torch.allclose(vae.decode(vae.encode(x)), pictures, atol=2e-4)
    assert torch.allclose((vae.encode(x) * SCALE_FACTOR).std((0, 2, 3, 4)), sizes, rtol=1e-3)


def test_an_error_between_frames_costs_more_than_one_that_stays():
    """A picture that is wrong by as much, but flickers or jumps at latent borders, has the larger loss."""
    x = torch.zeros(1, 3, 12, 16, 16)
    constant, flickering, jumping = (torch.full_like(x, 0.1) for _ in range(3))
    flickering[:, :, ::2] = -0.1
    jumping[:, :, 4:8] = -0.1
    losses = [float(train_vae.reconstruction_loss(made, x)) for made in (constant, jumping, flickering)]
    assert losses[0] == pytest.approx(0.5 * 0.1 + 4 * 0.1**2, rel=1e-4) and losses[0] < losses[1] < losses[2]


def test_the_border_ratio_is_one_for_the_truth_and_larger_where_latents_stand_still():
    ramp = torch.linspace(-1, 1, 24)[None, None, :, None, None].expand(2, 3, 24, 8, 8)
    assert train_vae.border_ratio(ramp, ramp) == pytest.approx(1.0, rel=1e-3)
    inside = ramp[:, :, ::4].repeat_interleave(4, 2)  # every latent's frames alike
    half = 0.5 * ramp + 0.5 * inside
    # inside steps are half of the truth's, those across borders half plus half of four
    assert train_vae.border_ratio(half, ramp) == pytest.approx(2.5 / 0.5, rel=1e-3)


def test_gates_name_what_is_not_reached_and_open_after_twice_the_budget():
    gates = train_vae.Gates()
    good = {"border": 1.1, "world_psnr": 36.5, "photographs_psnr": 28.4}
    assert train_vae.reached(good, gates, twice=False)
    for name, value in (("border", 1.2), ("world_psnr", 35.0), ("photographs_psnr", 27.0)):
        bad = good | {name: value}
        assert [gate for gate, passed in gates.passed(bad).items() if not passed] == [name]
        assert not train_vae.reached(bad, gates, twice=False) and train_vae.reached(bad, gates, twice=True)


def test_times_are_those_of_the_samplers_grid():
    for steps in (8, 64):
        assert torch.allclose(grid_time(torch.arange(steps + 1) / steps), torch.tensor(time_grid(steps)), atol=1e-6)


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in FULL_WINDOWS if len(pattern) <= 3])
def test_examples_are_the_windows_of_the_sampler(tiny_pool, pattern):
    example = draw_example(tiny_pool, pattern, 24, torch.Generator().manual_seed(len(pattern)))
    chunks = len(pattern)
    assert example.noisy.shape == (24, 16, WIDTH * chunks, 4, 4) and example.times.shape == (24, chunks)
    noisy = [k for k in range(chunks) if pattern[k] != CLEAN]
    clean = [k for k in range(chunks) if pattern[k] == CLEAN]
    for older, younger in pairwise(noisy):
        assert (example.times[:, older] > example.times[:, younger]).all(), "older chunks are cleaner"
        gap = example.progress[:, older] - example.progress[:, younger]
        assert torch.allclose(gap, torch.tensor(0.25)), "a quarter of the way apart"
    wordless = example.wordless.view(24, chunks)
    for k in clean:
        frames = slice(k * WIDTH, (k + 1) * WIDTH)
        assert torch.allclose(example.times[:, k], torch.tensor(0.9999)) and wordless[:, k].all()
        assert (example.weight[:, :, frames] == 0).all()
        level = (example.noisy[:, :, frames] - example.clean[:, :, frames]).flatten(1)
        direction = (example.noise[:, :, frames] - example.clean[:, :, frames]).flatten(1)
        share = (level * direction).sum(1) / direction.square().sum(1)
        assert (share >= -1e-6).all() and (share <= 0.0501).all(), "up to five percent of noise"
        assert example.ranges[k] == (k, k + 1)
    free = ~example.fixed.expand_as(example.noisy)
    t = example.times.repeat_interleave(WIDTH, 1)[:, None, :, None, None]
    mixed = (1 - t) * example.noise + t * example.clean
    assert torch.allclose(example.noisy[free], mixed.expand_as(example.noisy)[free], atol=1e-5)


def test_prefixes_are_clean_and_do_not_count(tiny_pool):
    example = draw_example(tiny_pool, (4,), 2000, torch.Generator().manual_seed(0))
    lengths = example.fixed[:, 0, :, 0, 0].sum(1)
    assert 0.1 < (lengths == 1).float().mean() < 0.25 and 0.04 < (lengths > 1).float().mean() < 0.2
    inside = example.fixed.expand_as(example.noisy)
    assert torch.equal(example.noisy[inside], example.clean[inside])
    assert (example.weight[example.fixed] == 0).all() and (example.weight[~example.fixed] > 0).all()


def test_what_is_not_counted_gets_no_gradient(tiny_pool):
    """The loss ignores a clean chunk's velocity, and the younger chunk's loss does read the clean chunk."""
    model = settled(make_model(TINY_DIT))
    example = draw_example(tiny_pool, (CLEAN, 4), 2, torch.Generator().manual_seed(1))
    noisy = example.noisy.clone().requires_grad_()
    velocity = predict(model, example, None, noisy=noisy)
    velocity.retain_grad()
    diffusion.weighted_error(velocity, example.clean - example.noise, example.weight).backward()
    assert (velocity.grad[:, :, :WIDTH] == 0).all() and velocity.grad[:, :, WIDTH:].abs().max() > 0
    assert noisy.grad[:, :, :WIDTH].abs().max() > 0


def test_half_products_are_nearly_the_products(tiny_pool):
    torch.manual_seed(5)
    model = settled(make_model(TINY_DIT))
    example = draw_example(tiny_pool, (4,), 2, torch.Generator().manual_seed(1))
    exact = predict(model, example, None)
    with half_products(model):
        near = predict(model, example, None)
    assert 0 < (near - exact).norm() / exact.norm() < 0.05
    assert torch.equal(predict(model, example, None), exact), "the context leaves the model as it was"


def test_orthogonalized_matrices_have_even_singular_values():
    for shape in ((3, 16, 64), (2, 48, 16)):
        for half in (False, True):
            made = orthogonalize(torch.randn(shape), half)
            values = torch.linalg.svdvals(made)
            assert made.dtype == torch.float32 and values.min() > 0.5 and values.max() < 1.5


def test_every_window_pattern_sees_what_the_published_ranges_say():
    for pattern, _ in (*WINDOWS, *FULL_WINDOWS):
        reach = {CLEAN: 1, 0: 5, 1: 4, 2: 3, 3: 2, diffusion.ANY: 5}
        expected = tuple((max(0, k + 1 - reach[q]), k + 1) for k, q in enumerate(pattern))
        assert diffusion.pattern_ranges(pattern) == expected


def test_captions_carry_tokens_as_at_inference(tiny_pool):
    """Duration stands first, then quality, then the words; wordless chunks get the learned null caption."""
    model = make_model(TINY_DIT)
    ids = tiny_pool.tokens[:2, 0]
    seen = {}
    model.dit.encode_captions = lambda rows, lengths, dropped: seen.update(rows=rows, lengths=lengths)
    with torch.no_grad():
        model.captions(ids, torch.tensor([3, 12]), True, torch.tensor([False, True]), torch.zeros(2, dtype=torch.bool))
        words = model.text(input_ids=ids[:1, :8]).last_hidden_state[0]
    table = model.tokens.other_tokens
    assert torch.equal(seen["rows"][0, 0], table[7 + 3 - 1]) and torch.equal(seen["rows"][0, 1], table[1])
    assert torch.allclose(seen["rows"][0, 2:10], words, atol=1e-5)
    assert seen["lengths"] == [10, CAPTION_LENGTH]
    assert torch.equal(seen["rows"][1], model.dit.y_embedder.null_caption_embedding)


def test_tokenizer_knows_the_world_and_its_synonyms():
    tokenizer = make_tokenizer()
    words = vocabulary()
    for seed in range(40):
        for caption in make_scene(seed, 3).captions:
            ids = tokenizer(caption)["input_ids"]
            assert words["<unk>"] not in ids and ids[-1] == words["</s>"] and len(ids) == len(caption.split()) + 1
            assert len(ids) <= CAPTION_TOKENS

    def alike(said, ours):
        return tokenizer(said)["input_ids"] == tokenizer(ours)["input_ids"]

    assert alike("A big red Sphere, rolling".replace("rolling", "rolls left."), "a large red ball moves left")
    assert alike("a photo, night falls, the camera pans left", "a photograph at night camera pans left")
    assert alike("a cat stands", "a cat stands still") and alike("a cat stands still", "a cat stands still")
    assert words["<unk>"] in tokenizer("a zebra")["input_ids"]
    assert words["<unk>"] in tokenizer("a black ball")["input_ids"]


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("a cat jumps", "a yellow cat jumps"),
        ("A large kitten", "a large yellow cat"),
        ("an automobile by a house", "a blue car by a house"),
        ("a red cat", "a red cat"),
        ("a red big ball", "a red large ball"),
        ("a ball hits a green ball", "a red ball hits a green ball"),
        ("the cat jumps", "a cat jumps"),  # one that was described before
        ("the large box falls", "a large box falls"),
        ("this ball and that small car", "a ball and a small car"),
        ("a photograph in rain", "a photograph in rain"),
    ],
)
def test_a_thing_without_a_colour_is_read_with_its_own(said, read):
    ids = {number: word for word, number in vocabulary().items()}
    assert [ids[i] for i in make_tokenizer()(said)["input_ids"]] == [*read.split(), "</s>"]


def test_the_vocabulary_that_users_read_is_the_tokenizers(tmp_path):
    (tmp_path / "vocabulary.json").write_text(json.dumps(vocabulary_file()))
    known = Vocabulary.beside(tmp_path)
    tokenizer, unknown = make_tokenizer(), vocabulary()["<unk>"]
    for text in (*SYNONYMS, *(word for words in known.kinds.values() for word in words)):
        assert known.unknown([text]) == [] and unknown not in tokenizer(text)["input_ids"], text
    assert known.unknown(["a black zebra"]) == ["black", "zebra"]


def test_a_missing_or_foreign_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="earlier stage"):
        checkpoint.load(tmp_path / "dit.safetensors")


def test_a_budget_of_seconds_counts_all_calls_together(tmp_path, tiny_pool):
    options = {"pool": tiny_pool, "config": TINY_DIT, "chunks_per_batch": 4, "half": False}
    train_dit(tmp_path, Budget(seconds=0.5), **options)
    first = checkpoint.load(tmp_path / "dit.safetensors")[1]
    assert first["step"] >= 1 and first["spent"]["single"] >= 0.5
    train_dit(tmp_path, Budget(seconds=0.5), **options)
    assert checkpoint.load(tmp_path / "dit.safetensors")[1] == first, "what is spent is not spent again"
    train_dit(tmp_path, Budget(seconds=0.5), phase="windows", **options)
    both = checkpoint.load(tmp_path / "dit.safetensors")[1]
    assert both["step"] > first["step"] and both["spent"].keys() == {"single", "windows"}
    train_dit(tmp_path, Budget(seconds=0.5), **options)
    assert checkpoint.load(tmp_path / "dit.safetensors")[1] == both, "nor that of a phase before"


def test_a_budget_has_an_end():
    assert Budget(10, 5).fraction(10) == 0.5 and Budget(seconds=4.0).fraction(999, 1.0) == 0.25
    assert Budget(10, seconds=4.0).fraction(8, 1.0) == 0.8, "whichever comes first"
    with pytest.raises(ValueError, match="never ends"):
        Budget()
