"""Prompt: text to ids, on the device and in training alike.

"hashed-words" needs no vocabulary file: every word has the id that its CRC-32 falls on. Two words
may share an id; with a few thousand ids and prompts of a dozen words that is rare and does no harm.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from typing import TYPE_CHECKING

import numpy as np

from mmsr_edge.errors import BundleError

if TYPE_CHECKING:
    import numpy.typing as npt

    from mmsr_edge.bundle import TextSpec

__all__ = ["END", "PAD", "START", "encode_prompt", "join_words", "split_words"]

PAD, START, END = 0, 1, 2
"""Ids with a meaning of their own; words have the ids from 3 up."""

_WORD = re.compile(r"\w+")


def split_words(text: str) -> list[str]:
    """The words of a prompt: lower case, letters and digits of every script, no punctuation.

    Unicode is brought to one form first (NFKC): an é typed as one character and an é made of two
    are the same letter.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def join_words(*parts: str) -> str:
    """StageNetworks of a prompt as one; empty ones are left out."""
    return ", ".join(part.strip() for part in parts if part.strip())


def encode_prompt(text: str, spec: TextSpec) -> npt.NDArray[np.int64]:
    """Ids of a prompt: int64 [1, spec.length], as the text encoder's `ids`.

    START, one id a word, END, then PAD. Words that do not fit are dropped; END never is.

    Raises:
        BundleError: when the bundle wants another tokenizer, or leaves no ids for words.
    """
    if spec.tokenizer != "hashed-words":
        raise BundleError(
            f"the bundle's tokenizer is {spec.tokenizer!r}; this version has 'hashed-words' only"
        )
    buckets = spec.vocab_size - 3
    if buckets < 1:
        raise BundleError(f"vocab_size is {spec.vocab_size}; it must be at least 4")
    words = split_words(text)[: spec.length - 2]
    ids = [START, *(3 + zlib.crc32(word.encode()) % buckets for word in words), END]
    return np.array([ids + [PAD] * (spec.length - len(ids))], np.int64)
