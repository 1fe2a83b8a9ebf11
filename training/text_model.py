"""The demo model's own text encoder: a tiny T5, and a tokenizer that knows the world's words."""

from __future__ import annotations

from typing import Any

from torch import nn

from training.looks import BACKGROUNDS, COLOURS, SHAPES, SIZES, Look
from training.world import CORE_MOTIONS, EXTRA_MOTIONS, collision_caption

CHANNELS = 64
"""Width of a caption embedding."""
CAPTION_LENGTH = 32
"""Rows of a caption that the model takes, special tokens included."""
SYNONYMS = {
    "circle": "ball",
    "disc": "ball",
    "sphere": "ball",
    "box": "square",
    "big": "large",
    "tiny": "small",
    "little": "small",
    "grey": "gray",
    "black": "dark",
    "violet": "purple",
    "chequered": "checkered",
    "moving": "moves",
    "move": "moves",
    "goes": "moves",
    "rolls": "moves",
    "flies": "moves",
    "falling": "falls",
    "drops": "falls",
    "bounces": "falls",
    "stands": "stays",
    "standing": "stays",
    "an": "a",
    "the": "a",
}
"""Words that a newcomer may use, and the world's word for each; replaced before the tokenizer looks."""

_MORE_WORDS = "it the and then is continues to moving falling standing still bounces of one two"
"""Words that no caption of the world has yet, kept so that a wider world needs no new vocabulary."""


def vocabulary() -> dict[str, int]:
    """Word -> id: every word of the world's captions in alphabetical order; padding is 0, the end token 1, as in T5."""
    words = set(_MORE_WORDS.split())
    for motion in (*CORE_MOTIONS, *EXTRA_MOTIONS):
        words |= set(f"a {motion} on background".split())
    words |= {*collision_caption(Look("red", "ball", "small", "dark"), "blue").split()}
    words |= {*COLOURS, *SHAPES, *SIZES, *BACKGROUNDS}
    return {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", *sorted(words)))}


def make_tokenizer() -> Any:
    """A word-level tokenizer: lower case, synonyms replaced, an end token behind."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = vocabulary()
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    replaced = [normalizers.Replace(Regex(rf"\b{word}\b"), ours) for word, ours in SYNONYMS.items()]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *replaced])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", words["</s>"])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def make_encoder() -> nn.Module:
    """An untrained T5 encoder (transformers) of two layers."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(vocabulary()),
        d_model=CHANNELS,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        architectures=["T5EncoderModel"],
    )
    return T5EncoderModel(config)
