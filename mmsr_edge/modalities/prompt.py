"""Prompts: from text to ids, in the same way on the device and in training.

"hashed-words" needs no vocabulary file: a word's id is its CRC-32, modulo the number of ids. Two
words may share an id; with a few thousand ids and prompts of a dozen words this is rare and
harmless.
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
"""Special ids; words have the ids from 3 up."""

_WORD = re.compile(r"\w+")


def split_words(text: str) -> list[str]:
    """The words of a prompt: lower case, letters and digits of every script, no punctuation.

    The text is normalized first (Unicode NFKC), so that an é of one code point and an é of two are
    the same letter.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def join_words(*parts: str) -> str:
    """The parts of a prompt as one line, separated by commas; empty parts are left out."""
    return ", ".join(part.strip() for part in parts if part.strip())


def encode_prompt(text: str, spec: TextSpec) -> npt.NDArray[np.int64]:
    """Ids of a prompt: int64 [1, spec.length], as the text encoder's `ids`.

    START, one id per word, END, then PAD. Words that do not fit are dropped; END is always kept.

    Raises:
        BundleError: the bundle needs another tokenizer, or leaves no ids for words.
    """
    if spec.tokenizer != "hashed-words":
        raise BundleError(
            f"the bundle's tokenizer is {spec.tokenizer!r}; this version reads 'hashed-words' only"
        )
    buckets = spec.vocab_size - 3
    if buckets < 1:
        raise BundleError(f"vocab_size is {spec.vocab_size}; it must be at least 4")
    words = split_words(text)[: spec.length - 2]
    ids = [START, *(3 + zlib.crc32(word.encode()) % buckets for word in words), END]
    return np.array([ids + [PAD] * (spec.length - len(ids))], np.int64)
