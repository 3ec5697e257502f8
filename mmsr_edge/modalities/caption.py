"""Greedy captions: an image encoder, and a decoder with a cache that runs one id at a time.

The decoder's shapes are static. `past` has room for the keys and values of every position. A step
reads those of the earlier positions and returns one new `column`, its own, which is copied into
`past` here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmsr_edge.errors import BackendError, BundleError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from mmsr_edge.bundle import ComponentSpec
    from mmsr_edge.modalities.vocabulary import Vocabulary

    Array = npt.NDArray[Any]
    Run = Callable[[str, dict[str, Array]], Mapping[str, Array]]

__all__ = ["GreedyCaptioner"]


class GreedyCaptioner:
    """Captions of pictures, by the components `captioner` and `caption_decoder`.

    Args:
        run: runs a component, given its name and feeds; returns its outputs by name.
        decoder: the manifest's entry of `caption_decoder`.
        vocabulary: the decoder's vocabulary.

    Raises:
        BundleError: the decoder lacks a tensor, its cache is too short for the captions, or it
            scores more ids than the vocabulary has tokens.
    """

    def __init__(self, run: Run, decoder: ComponentSpec, vocabulary: Vocabulary) -> None:
        shapes = {spec.name: spec.shape for spec in (*decoder.inputs, *decoder.outputs)}
        try:
            self._past, width = shapes["past"], shapes["logits"][-1]
        except KeyError as error:
            raise BundleError(f"component {decoder.name!r} has no tensor {error}") from None
        if self._past[3] < vocabulary.length - 1:
            raise BundleError(
                f"component {decoder.name!r} has a cache of {self._past[3]} ids; captions of "
                f"{vocabulary.length} ids need {vocabulary.length - 1}"
            )
        if width > len(vocabulary.tokens):
            raise BundleError(
                f"component {decoder.name!r} scores {width} ids, but its vocabulary has "
                f"{len(vocabulary.tokens)} tokens"
            )
        self._run, self.vocabulary = run, vocabulary

    def ids(self, image: Array) -> list[int]:
        """Ids of the caption, from the start id to the stop id, or to the longest length.

        Args:
            image: the whole picture, float32 [1, 3, s, s] in [-1, 1].

        Raises:
            BackendError: the decoder's scores are not finite.
        """
        states = self._run("captioner", {"image": image})["states"]
        past = np.zeros(self._past, np.float32)
        ids = [self.vocabulary.start]
        while len(ids) < self.vocabulary.length:
            position = len(ids) - 1
            step = {
                "ids": np.array([[ids[-1]]], np.int64),
                "position": np.array([position], np.int64),
                "states": states,
                "past": past,
            }
            results = self._run("caption_decoder", step)
            logits = results["logits"]
            if not np.isfinite(logits).all():
                raise BackendError(f"the caption decoder's scores are not finite after {ids}")
            past[:, :, :, position] = results["column"][:, :, :, 0]
            ids.append(int(logits[0].argmax()))
            if ids[-1] in self.vocabulary.stop:
                break
        return ids

    def caption(self, image: Array) -> str:
        """The caption of `image` as text; `image` is that of `ids`."""
        return self.vocabulary.text(self.ids(image)).strip()
