"""Vocabulary: the tokens of a caption decoder's ids, and the rule that joins them to text.

It is stored beside the decoder as `vocabulary.json`. A device only turns ids into text, which needs
no library: tokens are joined by one of two rules.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmsr_edge.bundle.records import decode, encode
from mmsr_edge.errors import BundleError
from mmsr_edge.files import write_text

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from mmsr_edge.bundle import Bundle

__all__ = ["VOCABULARY_NAME", "Vocabulary", "bundle_vocabulary", "load_vocabulary"]

VOCABULARY_NAME = "vocabulary.json"
"""File name, in the folder of the caption decoder."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a decoder, and the ids that start and stop a caption."""

    form: Literal["byte-bpe", "wordpiece"]
    """Rule that joins tokens: GPT-2's, in which characters stand for bytes, or BERT's, in which ##
    continues a word and every other token starts one."""
    tokens: tuple[str, ...]
    """Token by id; "" for an id without one."""
    special: tuple[int, ...]
    """Ids that stand for no text."""
    start: int
    """Id that a caption begins with."""
    stop: tuple[int, ...]
    """Ids that end a caption."""
    length: int
    """Largest number of ids in a caption, including the start and stop ids."""
    tidy: bool = False
    """Whether spaces before punctuation are removed (wordpiece)."""

    def __post_init__(self) -> None:
        if self.length < 2:
            raise BundleError(f"caption length {self.length} must be >= 2")
        for name in ("special", "stop"):
            for index in getattr(self, name):
                self._check(name, index)
        self._check("start", self.start)

    def _check(self, name: str, index: int) -> None:
        if not 0 <= index < len(self.tokens):
            raise BundleError(f"{name} id {index} is outside 0..{len(self.tokens) - 1}")

    def text(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Special, start and stop ids add nothing.

        Raises:
            BundleError: an id is outside the vocabulary.
        """
        silent = {self.start, *self.stop, *self.special}
        tokens = []
        for index in ids:
            self._check("caption", index)
            if index not in silent and self.tokens[index]:
                tokens.append(self.tokens[index])
        return _join_bytes(tokens) if self.form == "byte-bpe" else _join_words(tokens, self.tidy)

    def save(self, path: Path) -> None:
        """Write the vocabulary as JSON, for `load_vocabulary`."""
        write_text(path, json.dumps(encode(self), ensure_ascii=False))


def load_vocabulary(path: str | os.PathLike[str]) -> Vocabulary:
    """Read a vocabulary.

    Raises:
        BundleError: the file is missing or malformed.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"vocabulary {str(path)!r} cannot be read: {error}") from None
    try:
        return decode(Vocabulary, data)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None


def bundle_vocabulary(bundle: Bundle) -> Vocabulary:
    """The vocabulary of a bundle's caption decoder.

    Raises:
        BundleError: the bundle has no caption decoder, or the decoder has no vocabulary.
    """
    for artifact in bundle.component("caption_decoder").artifacts:
        for file in artifact.files:
            if file.path.rpartition("/")[2] == VOCABULARY_NAME:
                return load_vocabulary(bundle.path(file))
    raise BundleError(
        f"bundle {bundle.manifest.name!r}: the caption decoder has no {VOCABULARY_NAME}; "
        "export it again"
    )


def _join_bytes(tokens: list[str]) -> str:
    letters = "".join(tokens)
    try:
        content = bytes(_BYTES[letter] for letter in letters)
    except KeyError as error:
        raise BundleError(f"character {error.args[0]!r} is not a byte-level BPE letter") from None
    return content.decode("utf-8", errors="replace")  # a caption may be cut inside a character


def _byte_letters() -> dict[str, int]:
    """Byte of each GPT-2 letter: printable letters are their own byte, U+0100 and up the others."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_letters()

# Replacements that BERT's tokenizer applies to each token, in its order.
_TIDY = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def _join_words(tokens: list[str], tidy: bool) -> str:
    parts = []
    for number, token in enumerate(tokens):
        if number:
            token = token[2:] if token.startswith("##") else f" {token}"
        if tidy:
            for old, new in _TIDY:
                token = token.replace(old, new)
        parts.append(token)
    return "".join(parts)
