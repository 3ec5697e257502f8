"""Greedy captions, with stand-in networks in numpy that write known captions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mmsr_edge.bundle import Artifact, ComponentSpec, FileSpec, TensorSpec, open_bundle
from mmsr_edge.errors import BackendError, BundleError
from mmsr_edge.modalities.caption import GreedyCaptioner
from mmsr_edge.modalities.vocabulary import Vocabulary

if TYPE_CHECKING:
    import numpy.typing as npt

    from mmsr_edge.bundle import Bundle

    Array = npt.NDArray[Any]

WORDS = ("<s>", "</s>", "a", "dog", "cat", "on", "the", "mat", "snow")
VOCABULARY = Vocabulary("wordpiece", WORDS, (0, 1), start=0, stop=(1,), length=8)
LAYERS, HEADS, PLACES, WIDTH = 2, 2, 3, 4
PAST = (1, 2 * LAYERS, HEADS, VOCABULARY.length - 1, WIDTH)
STATES = (1, 2 * LAYERS, HEADS, PLACES, WIDTH)
COLUMN = (1, 2 * LAYERS, HEADS, 1, WIDTH)


def decoder_spec(**shapes: tuple[int, ...]) -> ComponentSpec:
    known: dict[str, tuple[int, ...]] = {
        "ids": (1, 1), "position": (1,), "states": STATES, "past": PAST,
        "logits": (1, len(WORDS)), "column": COLUMN,
    }  # fmt: skip
    known |= shapes
    specs = [
        TensorSpec(name, shape, "int64" if name in ("ids", "position") else "float32")
        for name, shape in known.items()
    ]
    artifact = Artifact("onnx", "fp32", (FileSpec("decoder.onnx", "0" * 64, 1),))
    return ComponentSpec("caption_decoder", tuple(specs[:4]), tuple(specs[4:]), (artifact,))


class Networks:
    """Stand-in networks: they write a given caption and check the decoder's inputs.

    A column encodes its id and position, so that the past can be checked.
    """

    def __init__(self, caption: str) -> None:
        self.caption = [WORDS.index(word) for word in caption.split()]
        self.calls: list[str] = []

    def __call__(self, component: str, feeds: dict[str, Array]) -> dict[str, Array]:
        self.calls.append(component)
        if component == "captioner":
            assert set(feeds) == {"image"}
            return {"states": np.full(STATES, feeds["image"].mean(), np.float32)}
        assert set(feeds) == {"ids", "position", "states", "past"}
        position = int(feeds["position"][0])
        fed = [VOCABULARY.start, *self.caption][: position + 1]
        assert feeds["ids"].tolist() == [[fed[-1]]]
        assert feeds["ids"].dtype == feeds["position"].dtype == np.int64
        assert (feeds["states"] == 0.5).all()
        past = feeds["past"]
        assert past.shape == PAST and past.dtype == np.float32
        for earlier in range(PAST[3]):
            expected = fed[earlier] + 100 * earlier + 1 if earlier < position else 0
            assert (past[:, :, :, earlier] == expected).all()
        logits = np.zeros((1, len(WORDS)), np.float32)
        logits[0, self.caption[position]] = 1
        column = np.full(COLUMN, fed[-1] + 100 * position + 1, np.float32)
        return {"logits": logits, "column": column}


IMAGE = np.full((1, 3, 8, 8), 0.5, np.float32)


def test_the_caption_takes_the_likeliest_id_at_every_step() -> None:
    networks = Networks("a dog on the snow </s>")
    captioner = GreedyCaptioner(networks, decoder_spec(), VOCABULARY)
    assert captioner.caption(IMAGE) == "a dog on the snow"
    assert networks.calls == ["captioner", *["caption_decoder"] * 6]
    assert captioner.ids(IMAGE) == [0, 2, 3, 5, 6, 8, 1]  # no state is left from the first caption


def test_a_caption_ends_at_its_length() -> None:
    networks = Networks(" ".join(["dog", "cat"] * 10))
    ids = GreedyCaptioner(networks, decoder_spec(), VOCABULARY).ids(IMAGE)
    assert ids == [0, 3, 4, 3, 4, 3, 4, 3]
    assert len(ids) == VOCABULARY.length


def test_an_empty_caption_is_empty() -> None:
    captioner = GreedyCaptioner(Networks("</s>"), decoder_spec(), VOCABULARY)
    assert captioner.ids(IMAGE) == [0, 1]
    assert captioner.caption(IMAGE) == ""


def test_scores_that_are_not_finite_are_refused() -> None:
    def run(component: str, feeds: dict[str, Array]) -> dict[str, Array]:
        results = Networks("dog dog dog dog")(component, feeds)
        if component == "caption_decoder":
            results["logits"][0, 5] = np.nan
        return results

    with pytest.raises(BackendError, match=r"not finite after \[0\]"):
        GreedyCaptioner(run, decoder_spec(), VOCABULARY).ids(IMAGE)


def test_a_decoder_that_does_not_fit_its_vocabulary_is_refused() -> None:
    networks = Networks("dog")
    with pytest.raises(BundleError, match="has a cache of 7 ids; captions of 9 ids need 8"):
        GreedyCaptioner(networks, decoder_spec(), replace(VOCABULARY, length=9))
    with pytest.raises(BundleError, match="scores 12 ids, but its vocabulary has 9"):
        GreedyCaptioner(networks, decoder_spec(logits=(1, 12)), VOCABULARY)


def captioner_spec(shape: tuple[int, ...] = STATES, name: str = "states") -> ComponentSpec:
    image = TensorSpec("image", (1, 3, 32, 32), "float32")
    output = TensorSpec(name, shape, "float32")
    artifact = Artifact("onnx", "fp32", (FileSpec("captioner.onnx", "0" * 64, 1),))
    return ComponentSpec("captioner", (image,), (output,), (artifact,))


def test_captioner_and_decoder_must_fit_together(bundle: Bundle) -> None:
    manifest = open_bundle(bundle.root).manifest

    def check(**components: ComponentSpec) -> None:
        replace(manifest, components={**manifest.components, **components})

    check(captioner=captioner_spec(), caption_decoder=decoder_spec())
    # A tagger has no decoder, and a label for each score.
    tagger = replace(captioner_spec((1, 40), "scores"), labels=tuple(map(str, range(40))))
    check(captioner=tagger)
    with pytest.raises(BundleError, match="has 0 labels for 40 scores"):
        check(captioner=captioner_spec((1, 40), "scores"))
    with pytest.raises(BundleError, match="needs a 'captioner'"):
        check(caption_decoder=decoder_spec())
    with pytest.raises(BundleError, match=r"outputs \['scores'\], expected \['states'\]"):
        check(captioner=captioner_spec((1, 40), "scores"), caption_decoder=decoder_spec())
    with pytest.raises(BundleError, match=r"'states' is float32 \[1, 4, 2, 3, 4\], expected"):
        check(captioner=captioner_spec((1, 4, 2, 5, 4)), caption_decoder=decoder_spec())
