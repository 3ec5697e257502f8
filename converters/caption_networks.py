"""Published captioners as two networks: a picture encoder, and a decoder of one token per step.

    image [1, 3, s, s]                                       ->  states [1, 2·layers, h, p, e]
    ids [1, 1], position [1], states, past [1, 2·layers, h, r, e]
                                    ->  logits [1, v], column [1, 2·layers, h, 1, e]

`states` are the keys and values of the decoder's cross-attention, with h heads of width e at p
places of the picture. Every step needs them, so the encoder computes them once. `past` are the keys
and values of the self-attention at the r earlier positions; `column` are those of this position.
Layer n has its keys at index 2n and its values at 2n + 1.
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
"""Added to the attention logits of later positions: exp of it is 0, and it fits into float16."""
DEFAULT_LENGTH = 21
"""Ids in a caption where neither checkpoint nor user sets a number: the start id and the 20 new ids
that are the default of `transformers`."""


class CaptionEncoder(nn.Module):
    """Picture encoder: from a picture to the keys and values of the decoder's cross-attention."""

    def __init__(self, checkpoint: Published, side: int, inner: int) -> None:
        super().__init__()
        self.input = PictureInput(checkpoint.preprocessing, side, inner)
        self.model, self.blip = checkpoint.model, checkpoint.kind == "blip"

    def encode(self, pixels: Tensor) -> Tensor:
        """Hidden states of the picture [1, p, ·], as `generate` passes them to the decoder."""
        model = self.model
        if self.blip:
            return cast(Tensor, model.vision_model(pixel_values=pixels).last_hidden_state)
        states = model.encoder(pixel_values=pixels).last_hidden_state
        project = getattr(model, "enc_to_dec_proj", None)
        return cast(Tensor, states if project is None else project(states))

    def forward(self, image: Tensor) -> Tensor:
        states = self.encode(self.input(image))
        # One step fills the empty cache; the exporter removes the rest of the step as dead code.
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        writer(self.model)(
            input_ids=torch.zeros(1, 1, dtype=torch.int64),
            encoder_hidden_states=states,
            past_key_values=cache,
            use_cache=True,
        )
        return _stack(cache.cross_attention_cache)


class CaptionDecoder(nn.Module):
    """Decoder of one token: from an id and the earlier keys and values to logits."""

    def __init__(self, checkpoint: Published, length: int) -> None:
        super().__init__()
        self.model = checkpoint.model
        self.writer = writer(checkpoint.model)
        self.past = length - 1
        config = self.writer.config
        # Width of the encoder's states; their values are unused, because the cache replaces them.
        self.encoder_width = getattr(config, "encoder_hidden_size", config.hidden_size)

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
            encoder_hidden_states=torch.zeros(1, states.shape[3], self.encoder_width),
            past_key_values=cache,
            use_cache=True,
        )
        return results.logits[:, -1], _stack(cache.self_attention_cache)[:, :, :, -1:]


def written(encoder: CaptionEncoder, image: NDArray[Any], length: int) -> list[int]:
    """Greedy caption ids by `transformers` itself, at most `length`."""
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about unused beam settings
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
    """Keys and values of a cache as one tensor [1, 2·layers, h, ·, e]."""
    return torch.stack([t for layer in cache.layers for t in (layer.keys, layer.values)], 1)


def _unstack(tensors: Tensor) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(tensors.shape[1] // 2):
        cache.update(tensors[:, 2 * layer], tensors[:, 2 * layer + 1], layer)
    return cache


def check_captioner(checkpoint: Published) -> None:
    """Check that a captioner converts, and that greedy decoding follows its settings.

    Raises:
        BundleError: the decoder's type is not supported, or the generation settings change greedy
            choices.
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
                f"which greedy decoding does not support here; set it to {neutral!r}"
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
    """Read a captioner's tokens, and the ids that start and end a caption.

    Args:
        checkpoint: a checkpoint opened for "caption".
        length: maximum number of ids in a caption; None: the checkpoint's own.

    Raises:
        BundleError: the tokenizer is missing or not supported, or the start and end ids are.
    """
    model, settings, folder = checkpoint.model, _settings(checkpoint), checkpoint.folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        backend = tokenizer.backend_tokenizer.to_str()
    except Exception as error:  # tokenizer files can raise anything
        raise BundleError(f"transformers finds no tokenizer in {str(folder)!r}: {error}") from error
    rule = json.loads(backend)
    forms = {"ByteLevel": "byte-bpe", "WordPiece": "wordpiece"}
    decoder: dict[str, Any] = rule["decoder"] or {}
    form = forms.get(decoder.get("type", ""))
    if form is None:
        raise BundleError(
            f"{str(folder)!r}: the tokenizer joins tokens by {decoder.get('type')!r}; "
            f"{' and '.join(forms)} are supported"
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
            f"{str(folder)!r}: config.json does not state which ids start and end a caption "
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
