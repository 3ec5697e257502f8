"""Vocabulary: what a caption decoder's ids stand for, and how they become text again.

It lies beside the decoder as `vocabulary.json`. Only the way back is needed on a device, ids to
text, and that takes no library: tokens are joined, by one of two rules.
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
"""Name of the file, in the folder of the caption decoder."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a decoder, and where a caption starts and stops."""

    form: Literal["byte-bpe", "wordpiece"]
    """Rule of joining: GPT-2's, whose characters stand for bytes; or BERT's, where ## continues a
    word and every other token starts one."""
    tokens: tuple[str, ...]
    """By id; "" where there is none."""
    special: tuple[int, ...]
    """Ids that are no text."""
    start: int
    """Id that a caption begins with."""
    stop: tuple[int, ...]
    """Ids that end one."""
    length: int
    """Most ids to a caption, the first and the last included."""
    tidy: bool = False
    """Whether the space before punctuation goes (wordpiece)."""

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
        """The text of `ids`; special, starting and stopping ones have none.

        Raises:
            BundleError: for an id that has no token.
        """
        silent = {self.start, *self.stop, *self.special}
        tokens = []
        for index in ids:
            self._check("caption", index)
            if index not in silent and self.tokens[index]:
                tokens.append(self.tokens[index])
        return _join_bytes(tokens) if self.form == "byte-bpe" else _join_words(tokens, self.tidy)

    def save(self, path: Path) -> None:
        """Write the file that `load_vocabulary` reads."""
        write_text(path, json.dumps(encode(self), ensure_ascii=False))


def load_vocabulary(path: str | os.PathLike[str]) -> Vocabulary:
    """Read a vocabulary.

    Raises:
        BundleError: it is missing or malformed.
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
        BundleError: it has no caption decoder, or that has no vocabulary.
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
        raise BundleError(f"character {error.args[0]!r} is none of byte-level BPE's") from None
    return content.decode("utf-8", errors="replace")  # a caption may be cut inside a character


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_letters()

# What BERT's tokenizer takes out of each token, in its order.
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
            for found, put in _TIDY:
                token = token.replace(found, put)
        parts.append(token)
    return "".join(parts)
