"""Greedy captions: an image encoder and a decoder with a cache, run one id at a time in numpy.

The decoder's shapes are static. `past` has room for the keys and values of every position; a step
gets those of the positions before it and gives back one `column`, its own, which is put in its
place here. So nothing but that column is new from one step to the next.
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
    """Captions of pictures by `captioner` and `caption_decoder`.

    Args:
        run: runs a component: its name and its feeds in, its outputs by name back.
        decoder: what the manifest says of `caption_decoder`.
        vocabulary: of the decoder.

    Raises:
        BundleError: the decoder has other inputs, or its cache is too short for the captions.
    """

    def __init__(self, run: Run, decoder: ComponentSpec, vocabulary: Vocabulary) -> None:
        shapes = {spec.name: spec.shape for spec in (*decoder.inputs, *decoder.outputs)}
        try:
            self._past, width = shapes["past"], shapes["logits"][-1]
        except KeyError as error:
            raise BundleError(f"component {decoder.name!r} has no tensor {error}") from None
        if self._past[3] < vocabulary.length - 1:
            raise BundleError(
                f"component {decoder.name!r} remembers {self._past[3]} ids; captions of "
                f"{vocabulary.length} need {vocabulary.length - 1}"
            )
        if width > len(vocabulary.tokens):
            raise BundleError(
                f"component {decoder.name!r} chooses among {width} ids, and its vocabulary has "
                f"{len(vocabulary.tokens)} tokens"
            )
        self._run, self.vocabulary = run, vocabulary

    def ids(self, image: Array) -> list[int]:
        """The caption's ids, from the starting one to the stopping one where it got there.

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
        """The caption as text; `image` as for `ids`."""
        return self.vocabulary.text(self.ids(image)).strip()
