"""Small checkpoints of published architectures, with random weights, as `transformers` saves them.

Weights are scaled like trained ones: with the libraries' own initialization, networks this small
give nearly the same output for every picture, and parity would be meaningless.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CLASSES = 7


def scaled(model: nn.Module, seed: int, tripled: tuple[str, ...] = ()) -> nn.Module:
    """Draw weights that keep a signal's scale; those named in `tripled` triple it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                gain = 3 if any(part in name for part in tripled) else 1
                weight.copy_(noise * gain / weight[0].numel() ** 0.5)
            else:
                one = "norm" in name.lower() and name.endswith("weight")
                weight.copy_(one + 0.1 * noise)
    return model


def _save(model: Any, folder: Path, processor: Any, tokenizer: Any = None) -> Path:
    for part in (model, processor, tokenizer):
        if part is not None:
            part.save_pretrained(folder)
    return folder


def depth_anything(folder: Path) -> Path:
    backbone = hf.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=70,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = hf.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=16,
        head_hidden_size=8,
    )
    processor = hf.DPTImageProcessorPil(
        size={"height": 126, "width": 126},
        ensure_multiple_of=14,
        keep_aspect_ratio=True,
        **IMAGENET,
    )
    return _save(scaled(hf.DepthAnythingForDepthEstimation(config), 1), folder, processor)


def dpt(folder: Path) -> Path:
    config = hf.DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=96,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=16,
        is_hybrid=False,
    )
    processor = hf.DPTImageProcessorPil(size={"height": 96, "width": 96}, resample=3)
    return _save(scaled(hf.DPTForDepthEstimation(config), 0), folder, processor)


def segformer(folder: Path) -> Path:
    config = hf.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        num_labels=CLASSES,
    )
    processor = hf.SegformerImageProcessorPil(size={"height": 256, "width": 256}, **IMAGENET)
    return _save(scaled(hf.SegformerForSemanticSegmentation(config), 0), folder, processor)


def mask2former(folder: Path) -> Path:
    backbone = hf.SwinConfig(
        image_size=128,
        embed_dim=12,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = hf.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=20,
        num_labels=CLASSES,
    )
    size = {"shortest_edge": 384, "longest_edge": 384}  # assumed by its postprocessing
    processor = hf.Mask2FormerImageProcessorPil(size=size, **IMAGENET)
    model = scaled(hf.Mask2FormerForUniversalSegmentation(config), 2, ("queries",)).eval()
    picture = torch.randn(1, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    decoder = model.model.pixel_level_module.decoder
    head = model.model.transformer_module.decoder.mask_predictor.mask_embedder
    *_, last = (part for part in head.modules() if isinstance(part, torch.nn.Linear))
    seen: list[torch.Tensor] = []
    hook = last.register_forward_hook(lambda *parts: seen.append(parts[-1]))
    with torch.no_grad():  # remove what all queries and all positions share
        model.class_predictor.weight *= 5
        decoder.mask_projection.weight *= 5
        model.class_predictor.bias -= model(pixel_values=picture).class_queries_logits.mean((0, 1))
        last.bias -= seen[-1].mean((0, 1))
        last.weight *= 5
        features = decoder(model.model.pixel_level_module.encoder(picture).feature_maps)
        decoder.mask_projection.bias -= features.mask_features.mean((0, 2, 3))
    hook.remove()
    return _save(model, folder, processor)


def vit_gpt2(folder: Path) -> Path:
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(["a dog sits on the mat", "ein Hündchen läuft"] * 3, trainer)
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=end, eos_token=end, unk_token=end
    )
    vision = hf.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
    )
    text = hf.GPT2Config(  # another width than the encoder's: states are projected
        vocab_size=len(tokenizer),
        n_embd=48,
        n_layer=2,
        n_head=3,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    model = scaled(hf.VisionEncoderDecoderModel(config), 3)
    for settings in (config, model.generation_config):
        settings.decoder_start_token_id = settings.eos_token_id = settings.pad_token_id = 0
    processor = hf.ViTImageProcessorPil(size={"height": 64, "width": 64})
    return _save(model, folder, processor, tokenizer)


def blip(folder: Path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "sit", "##s", "on", ",", "."]
    words += ["it", "'", "s", "n't", "snow", "[DEC]"]
    tokenizer = hf.BertTokenizer(
        vocab={word: index for index, word in enumerate(words)}, bos_token="[DEC]"
    )
    text = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "encoder_hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": len(words) - 1,
        "eos_token_id": 2,
        "sep_token_id": 3,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 16,
    }
    config = hf.BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    processor = hf.BlipImageProcessorPil(size={"height": 64, "width": 64})
    # The head shares the word embeddings; positions are tripled, so that successive words differ.
    model = scaled(hf.BlipForConditionalGeneration(config), 5, ("position_embeddings", "cross"))
    return _save(model, folder, processor, tokenizer)


MAKERS = {
    "depth_anything": depth_anything,
    "dpt": dpt,
    "segformer": segformer,
    "mask2former": mask2former,
    "vit_gpt2": vit_gpt2,
    "blip": blip,
}
"""Functions that write a checkpoint into a folder, by name."""

TASKS = {
    "depth_anything": "depth",
    "dpt": "depth",
    "segformer": "segmentation",
    "mask2former": "segmentation",
    "vit_gpt2": "caption",
    "blip": "caption",
}
"""Tasks of the checkpoints, as `--task` takes them."""
