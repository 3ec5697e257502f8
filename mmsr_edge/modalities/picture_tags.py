"""Picture tags: the words that stand for a picture where the caller gives none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mmsr_edge.config import join_words
from mmsr_edge.errors import BundleError, Cancelled, MMSRError
from mmsr_edge.modalities.caption import Tag, choose_tags, describe, write_prompt
from mmsr_edge.modalities.greedy_caption import GreedyCaptioner
from mmsr_edge.modalities.picture_maps import see_whole, whole_picture

if TYPE_CHECKING:
    import numpy.typing as npt

    from mmsr_edge.pipeline import PictureRun

__all__ = ["collect_tags"]


def collect_tags(rgb: npt.NDArray[Any], run: PictureRun, warnings: list[str]) -> dict[str, float]:
    """Put what the tagger finds, and what can be computed, before the prompt of `run`.

    Args:
        rgb: the picture, [H, W, 3] in [-1, 1].
        run: runs the bundle's tagger; its prompt is changed unless the caller gave one.
        warnings: gets a sentence where the tagger failed.

    Returns:
        Scores by tag, the surest first; empty where the bundle has no tagger, or has a captioner
        that writes sentences.
    """
    if not run.settings.tagged:
        return {}
    tags: list[Tag] = []
    sentence = ""
    components = run.pipeline.manifest.components
    try:
        if "caption_decoder" in components:
            sentence = _sentence(rgb, run)
        elif (scores := see_whole(rgb, run, "captioner")) is not None:
            tags = choose_tags(scores, components["captioner"].labels)
    except Cancelled:
        raise
    except MMSRError as error:
        warnings.append(f"tags are left out: {error}")
    began = time.perf_counter()
    words = join_words(sentence, write_prompt(tags, describe(rgb, run.pipeline.manifest.scale)))
    run.seconds["words"] += time.perf_counter() - began
    run.positive = join_words(words, run.settings.positive)
    return {tag.name: tag.score for tag in tags}


def _sentence(rgb: npt.NDArray[Any], run: PictureRun) -> str:
    """What a captioner that writes says of the picture."""
    vocabulary = run.pipeline.vocabulary
    if vocabulary is None:
        raise BundleError("the bundle's caption decoder came without its vocabulary")
    components = run.pipeline.manifest.components
    image = whole_picture(rgb, components["captioner"].inputs[0].shape[-1])
    captioner = GreedyCaptioner(
        lambda component, feeds: run.run(component, **feeds),
        components["caption_decoder"],
        vocabulary,
    )
    return captioner.caption(image)
