"""Published captioners as two networks: one that looks at the picture, one that writes a word.

    image [1, 3, s, s]                                       ->  states [1, 2·layers, h, p, e]
    ids [1, 1], position [1], states, past [1, 2·layers, h, r, e]
                                    ->  logits [1, v], column [1, 2·layers, h, 1, e]

`states` are the keys and values of the decoder's cross-attention: of h heads, e wide, for p places
of the picture. Every word needs them, so they are made once. `past` are those of its
self-attention, of the r positions before; `column` is this position's. Layer n's keys are at 2n,
its values at 2n + 1.
"""

from __future__ import annotations

import json
import warnings
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoTokenizer, DynamicCache, EncoderDecoderCache

from mmsr_edge.converters.map_networks import PictureInput
from mmsr_edge.converters.published import Published
from mmsr_edge.errors import BundleError
from mmsr_edge.modalities.vocabulary import Vocabulary

HIDDEN = -1e4
"""Added to the attention of positions to come: e to this is 0, and float16 holds it."""
DEFAULT_LENGTH = 21
"""Ids to a caption where neither checkpoint nor user names a number: a start and the 20 after it
that `transformers` makes then."""


class CaptionEncoder(nn.Module):
    """What the decoder sees of a picture."""

    def __init__(self, checkpoint: Published, side: int, inner: int) -> None:
        super().__init__()
        self.input = PictureInput(checkpoint.preprocessing, side, inner)
        self.model, self.blip = checkpoint.model, checkpoint.kind == "blip"

    def look(self, pixels: Tensor) -> Tensor:
        """What the picture says, [1, p, ·], as `generate` hands it to the decoder."""
        model = self.model
        if self.blip:
            return cast(Tensor, model.vision_model(pixel_values=pixels).last_hidden_state)
        states = model.encoder(pixel_values=pixels).last_hidden_state
        project = getattr(model, "enc_to_dec_proj", None)
        return cast(Tensor, states if project is None else project(states))

    def forward(self, image: Tensor) -> Tensor:
        states = self.look(self.input(image))
        # A step on an empty cache fills it; all else of the step is dead code to the exporter.
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        writer(self.model)(
            input_ids=torch.zeros(1, 1, dtype=torch.int64),
            encoder_hidden_states=states,
            past_key_values=cache,
            use_cache=True,
        )
        return _stack(cache.cross_attention_cache)


class CaptionDecoder(nn.Module):
    """One step of the decoder."""

    def __init__(self, checkpoint: Published, length: int) -> None:
        super().__init__()
        self.model = checkpoint.model
        self.writer = writer(checkpoint.model)
        self.past = length - 1
        config = self.writer.config
        # Of what encoder: its values are not looked at, for the cache has what is made of them.
        self.seen = getattr(config, "encoder_hidden_size", config.hidden_size)

    def forward(
        self, ids: Tensor, position: Tensor, states: Tensor, past: Tensor
    ) -> tuple[Tensor, Tensor]:
        cache = EncoderDecoderCache(_unstack(past), _unstack(states))
        earlier = torch.arange(self.past) < position
        mask = torch.where(earlier, 0.0, HIDDEN)
        mask = torch.cat([mask, torch.zeros(1)]).view(1, 1, 1, -1)
        results = self.writer(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position[None],
            encoder_hidden_states=torch.zeros(1, states.shape[3], self.seen),
            past_key_values=cache,
            use_cache=True,
        )
        return results.logits[:, -1], _stack(cache.self_attention_cache)[:, :, :, -1:]


def written(encoder: CaptionEncoder, image: NDArray[Any], length: int) -> list[int]:
    """The ids that `transformers` itself writes greedily, at most `length`."""
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its advice on settings of beams that are not used
        ids = encoder.model.generate(
            pixel_values=encoder.input(torch.from_numpy(image)),
            max_new_tokens=length - 1,
            do_sample=False,
            num_beams=1,
        )
    return [int(index) for index in ids[0]]


def writer(model: nn.Module) -> nn.Module:
    """The decoder of a captioner."""
    return cast(nn.Module, model.text_decoder if hasattr(model, "text_decoder") else model.decoder)


def _stack(cache: Any) -> Tensor:
    """[1, 2·layers, h, ·, e]."""
    return torch.stack([t for layer in cache.layers for t in (layer.keys, layer.values)], 1)


def _unstack(tensors: Tensor) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(tensors.shape[1] // 2):
        cache.update(tensors[:, 2 * layer], tensors[:, 2 * layer + 1], layer)
    return cache


def check_captioner(checkpoint: Published) -> None:
    """Check that a captioner is one of those that convert, and writes greedily what it should.

    Raises:
        BundleError: its decoder is another, or its generation settings change greedy choices.
    """
    kind = writer(checkpoint.model).config.model_type
    if kind not in ("gpt2", "blip_text_model"):
        raise BundleError(
            f"{str(checkpoint.folder)!r}: the decoder is of type {kind!r}; gpt2 and BLIP convert"
        )
    settings = _settings(checkpoint)
    for name, neutral in _NEUTRAL.items():
        value = getattr(settings, name, None)
        if value is not None and value != neutral:
            raise BundleError(
                f"{str(checkpoint.folder)!r}: generation_config.json has {name} = {value!r}, "
                f"which greedy decoding here does not do; set it to {neutral!r}"
            )


_NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "bad_words_ids": [],
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
}


def _settings(checkpoint: Published) -> Any:
    model = checkpoint.model
    return (writer(model) if checkpoint.kind == "blip" else model).generation_config


def vocabulary(checkpoint: Published, length: int | None) -> Vocabulary:
    """A captioner's tokens, and where its captions start and stop.

    Args:
        checkpoint: opened for "caption".
        length: most ids to a caption; None: as the checkpoint says.

    Raises:
        BundleError: the folder has no tokenizer, or one of another form.
    """
    model, settings, folder = checkpoint.model, _settings(checkpoint), checkpoint.folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        backend = tokenizer.backend_tokenizer.to_str()
    except Exception as error:  # whatever files of a tokenizer can provoke
        raise BundleError(f"transformers finds no tokenizer in {str(folder)!r}: {error}") from error
    rule = json.loads(backend)
    forms = {"ByteLevel": "byte-bpe", "WordPiece": "wordpiece"}
    decoder: dict[str, Any] = rule["decoder"] or {}
    form = forms.get(decoder.get("type", ""))
    if form is None:
        raise BundleError(
            f"{str(folder)!r}: the tokenizer joins tokens by {decoder.get('type')!r}; "
            f"{' and '.join(forms)} are known"
        )
    tokens = [""] * max(len(tokenizer), writer(model).config.vocab_size)
    for token, index in tokenizer.get_vocab().items():
        tokens[index] = token
    if checkpoint.kind == "blip":
        text = model.config.text_config
        start, stop = text.bos_token_id, text.sep_token_id
    else:
        start, stop = settings.decoder_start_token_id, settings.eos_token_id
        start = model.config.decoder_start_token_id if start is None else start
        stop = model.config.eos_token_id if stop is None else stop
    if length is None:
        added = settings.max_new_tokens
        length = added + 1 if added else settings.max_length or DEFAULT_LENGTH
    if start is None or stop is None:
        raise BundleError(
            f"{str(folder)!r}: config.json says not which ids start and end a caption "
            f"(got {start} and {stop})"
        )
    return Vocabulary(
        form=cast(Any, form),
        tokens=tuple(tokens),
        special=tuple(sorted(tokenizer.all_special_ids)),
        start=start,
        stop=tuple(stop) if isinstance(stop, (list, tuple)) else (stop,),
        length=length,
        tidy=bool(decoder.get("cleanup", False)),
    )
