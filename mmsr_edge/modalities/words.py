"""Words: the prompt made from a picture when the caller asks for an automatic one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mmsr_edge.errors import BundleError, Cancelled, MMSRError
from mmsr_edge.modalities.base import run_on_picture, squeeze_picture
from mmsr_edge.modalities.caption import GreedyCaptioner
from mmsr_edge.modalities.prompt import join_words
from mmsr_edge.modalities.tags import Tag, choose_tags, describe, write_prompt

if TYPE_CHECKING:
    import numpy.typing as npt

    from mmsr_edge.modalities.base import NetworkRun

__all__ = ["collect_words"]


def collect_words(
    rgb: npt.NDArray[Any], run: NetworkRun, warnings: list[str]
) -> tuple[str, dict[str, float]]:
    """Words for a picture: the tagger's tags or the captioner's sentence, and computed words.

    Args:
        rgb: the picture, [H, W, 3] in [-1, 1].
        run: runs the bundle's tagger or captioner.
        warnings: receives one sentence if the network failed.

    Returns:
        The words as a prompt, and scores by tag, the most probable first. There are no tags if the
        bundle has no tagger, or has a captioner that writes sentences.
    """
    tags: list[Tag] = []
    sentence = ""
    components = run.manifest.components
    try:
        if "caption_decoder" in components:
            sentence = _sentence(rgb, run)
        elif (scores := run_on_picture(rgb, run, "captioner")) is not None:
            tags = choose_tags(scores, components["captioner"].labels)
    except Cancelled:
        raise
    except MMSRError as error:
        warnings.append(f"tags are left out: {error}")
    began = time.perf_counter()
    words = join_words(sentence, write_prompt(tags, describe(rgb, run.manifest.scale)))
    run.seconds["words"] += time.perf_counter() - began
    return words, {tag.name: tag.score for tag in tags}


def _sentence(rgb: npt.NDArray[Any], run: NetworkRun) -> str:
    """The caption of the picture, for a bundle with a caption decoder."""
    vocabulary = run.vocabulary
    if vocabulary is None:
        raise BundleError("the bundle's caption decoder has no vocabulary; export it again")
    components = run.manifest.components
    image = squeeze_picture(rgb, components["captioner"].inputs[0].shape[-1])
    captioner = GreedyCaptioner(
        lambda component, feeds: run.run(component, **feeds),
        components["caption_decoder"],
        vocabulary,
    )
    return captioner.caption(image)
