"""The hashed-words tokenizer."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr_edge.bundle import TextSpec
from mmsr_edge.errors import BundleError
from mmsr_edge.modalities.prompt import encode_prompt, split_words

SPEC = TextSpec(tokenizer="hashed-words", vocab_size=4096, length=77, positive="", negative="")


def test_a_prompt_by_hand() -> None:
    ids = encode_prompt("A red-roofed House!", SPEC)
    words = [b"a", b"red", b"roofed", b"house"]
    expected = [1, *(3 + zlib.crc32(word) % 4093 for word in words), 2]
    assert ids.dtype == np.int64
    assert ids.shape == (1, 77)
    np.testing.assert_array_equal(ids[0, :6], expected)
    assert (ids[0, 6:] == 0).all()


def test_ids_never_change() -> None:
    """Trained weights depend on these numbers; they are written down, not computed."""
    ids = encode_prompt("sharp photograph of a house", SPEC)[0, :8].tolist()
    assert ids == [1, 1908, 3594, 1741, 2280, 1345, 2, 0]


def test_letters_of_every_script_are_kept() -> None:
    assert split_words("Fjällräven, Straße; 東京 42") == ["fjällräven", "straße", "東京", "42"]
    assert split_words("cafe\u0301") == split_words("caf\u00e9")
    assert split_words("... !?") == []


def test_an_empty_prompt_is_start_and_end() -> None:
    assert encode_prompt("", SPEC)[0, :3].tolist() == [1, 2, 0]


@given(st.text(), st.integers(4, 50000), st.integers(2, 100))
def test_any_text_gives_ids_in_range_with_one_end(text: str, vocab: int, length: int) -> None:
    ids = encode_prompt(text, replace(SPEC, vocab_size=vocab, length=length))[0]
    assert ids.shape == (length,)
    assert ids[0] == 1
    assert ids.min() >= 0
    assert ids.max() < vocab
    end = int(np.flatnonzero(ids == 2)[0])
    assert end == min(len(split_words(text)) + 1, length - 1)
    assert (ids[1:end] >= 3).all()
    assert (ids[end + 1 :] == 0).all()


def test_a_long_prompt_keeps_its_end() -> None:
    ids = encode_prompt("word " * 200, SPEC)[0]
    assert ids[-1] == 2
    assert len(set(ids[1:-1].tolist())) == 1


def test_unknown_tokenizers_are_refused() -> None:
    with pytest.raises(BundleError, match="clip-bpe"):
        encode_prompt("a house", replace(SPEC, tokenizer="clip-bpe"))
