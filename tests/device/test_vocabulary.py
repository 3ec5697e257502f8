"""Ids of a caption back to text, by the rules of GPT-2 and BERT."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr_edge.bundle import Artifact, ComponentSpec, TensorSpec, describe_file
from mmsr_edge.errors import BundleError
from mmsr_edge.modalities.vocabulary import (
    VOCABULARY_NAME,
    Vocabulary,
    bundle_vocabulary,
    load_vocabulary,
)

if TYPE_CHECKING:
    from pathlib import Path

    from mmsr_edge.bundle import Bundle

WORDS = (
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "a",
    "dog",
    "##s",
    "run",
    "##ning",
    ",",
    ".",
    "it",
    "'s",
    "",
    "'",
)
WORDPIECE = Vocabulary("wordpiece", WORDS, (0, 1, 2), start=1, stop=(2,), length=20, tidy=True)


def byte_letter(byte: int) -> str:
    """The letter of a byte in GPT-2's table, by the definition: printable, or counted from 256."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    if byte in printable:
        return chr(byte)
    return chr(256 + sum(other not in printable for other in range(byte)))


BYTES = Vocabulary(
    "byte-bpe",
    ("<|endoftext|>", *(byte_letter(byte) for byte in range(256)), "Ġdog", "Ġsnow"),
    (0,),
    start=0,
    stop=(0,),
    length=20,
)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("[CLS] a dog ##s run [SEP]", "a dogs run"),
        ("[CLS] a dog run ##ning [PAD] [PAD]", "a dog running"),
        ("it 's a dog , a dog .", "it's a dog, a dog."),
        ("", ""),
        ("[CLS] [SEP]", ""),
    ],
)
def test_word_pieces_are_joined(words: str, text: str) -> None:
    assert WORDPIECE.text([WORDS.index(word) for word in words.split()]) == text


def test_an_id_with_an_empty_token_adds_nothing() -> None:
    assert WORDPIECE.text([3, 12, 4]) == "a dog"


def test_the_space_before_punctuation_stays_where_it_should() -> None:
    untidy = replace(WORDPIECE, tidy=False)
    assert untidy.text([10, 11, 3, 4, 9]) == "it 's a dog ."


@given(st.text(max_size=30))
def test_bytes_make_any_text(text: str) -> None:
    ids = [1 + byte for byte in text.encode("utf-8", errors="surrogatepass")]
    expected = text.encode("utf-8", errors="surrogatepass").decode("utf-8", errors="replace")
    assert BYTES.text([0, *ids, 0]) == expected


def test_a_caption_cut_inside_a_character_is_readable() -> None:
    ids = [1 + byte for byte in "schön".encode()]
    assert BYTES.text([0, 257, *ids[:4]]) == " dogsch\ufffd"


def test_a_saved_vocabulary_reads_back_equal(tmp_path: Path) -> None:
    for vocabulary in (WORDPIECE, BYTES):
        vocabulary.save(tmp_path / VOCABULARY_NAME)
        assert load_vocabulary(tmp_path / VOCABULARY_NAME) == vocabulary


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "cannot be read"),
        ('{"form": "sentencepiece"}', "form: got 'sentencepiece'"),
        ('{"form": "wordpiece", "tokens": ["a"], "special": [], "start": 1, "stop": []', "read"),
        (
            (
                '{"form": "wordpiece", "tokens": ["a"], "special": [], "start": 1, "stop": [], '
                '"length": 5}'
            ),
            r"start id 1 is outside 0\.\.0",
        ),
        (
            (
                '{"form": "wordpiece", "tokens": ["a"], "special": [], "start": 0, "stop": [7], '
                '"length": 5}'
            ),
            r"stop id 7 is outside",
        ),
        (
            (
                '{"form": "wordpiece", "tokens": ["a"], "special": [], "start": 0, "stop": [], '
                '"length": 1}'
            ),
            "length 1 must be >= 2",
        ),
    ],
)
def test_a_damaged_vocabulary_is_refused(content: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / VOCABULARY_NAME
    path.write_text(content)
    with pytest.raises(BundleError, match=complaint):
        load_vocabulary(path)
    with pytest.raises(BundleError, match="cannot be read"):
        load_vocabulary(tmp_path / "none.json")


def test_unknown_byte_letters_and_ids_are_refused() -> None:
    odd = replace(BYTES, tokens=(*BYTES.tokens[:-1], "日"))
    with pytest.raises(BundleError, match="'日' is not a byte-level BPE letter"):
        odd.text([len(odd.tokens) - 1])
    with pytest.raises(BundleError, match="caption id 99 is outside"):
        WORDPIECE.text([99])


def test_a_bundle_has_a_vocabulary_beside_its_decoder(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no component 'caption_decoder'"):
        bundle_vocabulary(bundle)
    WORDPIECE.save(bundle.root / VOCABULARY_NAME)
    files = [describe_file(bundle.root, "unet.fp32.onnx")]
    tensor = (TensorSpec("ids", (1, 1), "int64"),)

    def with_files() -> Bundle:
        artifact = Artifact("onnx", "fp32", tuple(files))
        components = bundle.manifest.components
        components["caption_decoder"] = ComponentSpec(
            "caption_decoder", tensor, tensor, (artifact,)
        )
        return bundle

    with pytest.raises(BundleError, match=r"has no vocabulary\.json"):
        bundle_vocabulary(with_files())
    files.append(describe_file(bundle.root, VOCABULARY_NAME))
    assert bundle_vocabulary(with_files()) == WORDPIECE
