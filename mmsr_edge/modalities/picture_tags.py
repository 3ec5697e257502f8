"""Picture tags: the words that stand for a picture where the caller gives none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mmsr_edge.config import join_words
from mmsr_edge.errors import Cancelled, MMSRError
from mmsr_edge.modalities.caption import Tag, choose_tags, describe, write_prompt
from mmsr_edge.modalities.picture_maps import see_whole

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
        Scores by tag, the surest first; empty where the bundle has no tagger.
    """
    if not run.settings.tagged:
        return {}
    tags: list[Tag] = []
    manifest = run.pipeline.manifest
    try:
        seen = see_whole(rgb, run, "captioner")
        if seen is not None:
            tags = choose_tags(seen, manifest.components["captioner"].labels)
    except Cancelled:
        raise
    except MMSRError as error:
        warnings.append(f"tags are left out: {error}")
    began = time.perf_counter()
    words = write_prompt(tags, describe(rgb, manifest.scale))
    run.seconds["words"] += time.perf_counter() - began
    run.positive = join_words(words, run.settings.positive)
    return {tag.name: tag.score for tag in tags}
