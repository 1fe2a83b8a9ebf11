"""The demo model's own text encoder: a tiny T5, and a tokenizer that knows the world's words."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from training.world.words import (
    BOUNCE,
    CAMERAS,
    COLOURS,
    HIT,
    LIGHTS,
    MOTIONS,
    PLACES,
    SCENERY,
    SIZES,
    THINGS,
    WEATHERS,
)
from training.world.words import words as world_words

CHANNELS = 64
"""Width of a caption embedding."""
CAPTION_LENGTH = 32
"""Rows of a caption that the model takes, special tokens included."""
PICTURE_DECIBELS = 24.0
"""PSNR below which the autoencoder does not hold a picture that a video starts from."""
SYNONYMS = {
    "the camera": "camera",
    "night falls": "at night",
    "it is night": "at night",
    "by night": "at night",
    "the sun sets": "at sunset",
    "the sun is setting": "at sunset",
    "by day": "at day",
    "it snows": "in snow",
    "it is snowing": "in snow",
    "snows": "in snow",
    "it rains": "in rain",
    "it is raining": "in rain",
    "rains": "in rain",
    "it is foggy": "in fog",
    "is still": "still",
    "stands": "stands still",
    "stands still still": "stands still",
    "stays still": "stands still",
    "waits": "stands still",
    "rolls to the left": "moves left",
    "rolls to the right": "moves right",
    "rolls": "moves",
    "drives": "moves",
    "walks": "moves",
    "runs": "moves",
    "goes": "moves",
    "slides": "moves",
    "drops": "falls",
    "leaps": "jumps",
    "hops": "jumps",
    "collides with": "hits",
    "pan": "pans",
    "zoom": "zooms",
    "crate": "box",
    "automobile": "car",
    "kitten": "cat",
    "sphere": "ball",
    "building": "house",
    "city": "town",
    "field": "meadow",
    "big": "large",
    "huge": "large",
    "little": "small",
    "tiny": "small",
    "violet": "purple",
    "picture": "photograph",
    "photo": "photograph",
    "image": "photograph",
    "sunny": "clear",
    "mist": "fog",
    "next to": "by",
    "beside": "by",
}
"""Words that a newcomer may use, and the world's words for each; replaced in this order before the tokenizer looks."""

DEFINITE = ("the", "this", "that")
ARTICLES = {"an": "a"} | dict.fromkeys(DEFINITE, "a")
"""Replaced last: "the ball" is one that was described before, and keeps the colour that it had."""

OWN_COLOURS = {"ball": "red", "box": "purple", "car": "blue", "cat": "yellow"}
"""What a thing is read as whose colour is not named: a small model cannot guess one colour for all of it."""

SPARE_WORDS = "it then is to of one two with up down on grows shrinks turns"
"""Words that no caption of the world has yet, kept so that a wider world needs no new vocabulary."""


def vocabulary() -> dict[str, int]:
    """Word -> id: every word of the world's captions in alphabetical order; padding is 0, the end token 1, as in T5."""
    words = {*world_words(), *SPARE_WORDS.split()}
    return {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", *sorted(words)))}


def vocabulary_file() -> dict[str, Any]:
    """What `magi_lite.text.vocabulary` reads beside the model: its words, those that count as others, and kinds."""
    return {
        "words": world_words(),
        "same": SYNONYMS | ARTICLES,
        "kinds": {
            "colours": list(COLOURS),
            "sizes": list(SIZES),
            "things": [*THINGS, *SCENERY],
            "motions": [*MOTIONS, BOUNCE, HIT],
            "places": list(PLACES),
            "light": [f"at {name}" for name in LIGHTS],
            "weather": [f"in {name}" for name in WEATHERS[1:]],
            "camera": [f"camera {name}" for name in CAMERAS],
            "photographs to start from": ["a photograph"],
        },
        "picture_decibels": PICTURE_DECIBELS,
    }


def make_tokenizer() -> Any:
    """A word-level tokenizer: lower case, synonyms replaced, colours that are not named put in, an end token behind."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = vocabulary()
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    named = [*COLOURS, *DEFINITE]
    named += [f"{word} {size}" for word in named for size in SIZES]
    unnamed = "".join(rf"(?<!\b{words} )" for words in named)
    replaced = [(rf"\b{re.escape(word)}\b", ours) for word, ours in SYNONYMS.items()]
    replaced += [(rf"{unnamed}\b{thing}\b", f"{colour} {thing}") for thing, colour in OWN_COLOURS.items()]
    replaced += [(rf"\b{word}\b", ours) for word, ours in ARTICLES.items()]
    steps = [normalizers.Replace(Regex(pattern), ours) for pattern, ours in replaced]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
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
