"""Published weights in our networks: equal to the source libraries, with small networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel
from vqgan_reference import VQGAN

from mmsr_edge import BundleError, OptionError, Upscaler
from mmsr_edge.converters.import_checkpoint import (
    ImportConfig,
    _sampler,
    import_checkpoint,
    import_text_encoder,
    import_unet,
    import_vae,
    main,
)
from mmsr_edge.converters.taming import import_vqgan
from mmsr_edge.models.checkpoint import Checkpoint, load_network, open_checkpoint
from mmsr_edge.models.presets import PRESETS, Preset
from mmsr_edge.sampler import make_schedule

NAME = "narrow-sd2"
UNET = {
    "sample_size": 16, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 64,
    "block_out_channels": (32, 64, 64, 64), "attention_head_dim": [2, 4, 4, 4],
    "layers_per_block": 2, "use_linear_projection": True,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
VAE = {
    "block_out_channels": (32, 32, 64, 64), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 768,
}  # fmt: skip
TEXT = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "hidden_act": "gelu", "pad_token_id": 1, "bos_token_id": 94,
    "eos_token_id": 95,
}  # fmt: skip


WIDTHS = (32, 32, 32, 32, 64)


def narrow() -> Preset:
    """The layout of the paper's preset with about a thousandth of its weights."""
    p = PRESETS["sd2"]
    return replace(
        p,
        name=NAME,
        dim=64,
        tile=32,
        overlap=8,
        autoencoder=replace(p.autoencoder, block_out_channels=(32, 32, 64, 64)),
        tokenizer=replace(p.tokenizer, block_out_channels=WIDTHS, codes=48, width=32),
        text=replace(p.text, vocab_size=96, layers=2, heads=4),
        connector=replace(p.connector, latents=8, heads=4, blocks=1),
        unet=replace(p.unet, block_out_channels=(32, 64, 64, 64), heads=(2, 4, 4, 4)),
    )


@pytest.fixture(autouse=True)
def p(monkeypatch: pytest.MonkeyPatch) -> Preset:
    """The narrow preset, entered into the table of presets."""
    torch.manual_seed(3)
    monkeypatch.setitem(PRESETS, NAME, narrow())
    return PRESETS[NAME]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `diffusers` writes it and a VQGAN's checkpoint, with random weights."""
    root = tmp_path_factory.mktemp("sd2")
    torch.manual_seed(0)
    UNet2DConditionModel(**UNET).save_pretrained(root / "unet")
    AutoencoderKL(**VAE).save_pretrained(root / "vae")
    CLIPTextModel(CLIPTextConfig(**TEXT)).save_pretrained(root / "text_encoder")
    state = VQGAN(WIDTHS, 2, 32, 48).state_dict()
    torch.save({"state_dict": state, "epoch": 7, "global_step": 9}, root / "vqgan.ckpt")
    save_file(state, root / "vqgan.safetensors")
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({"prediction_type": "v_prediction", "skip_prk_steps": True})
    )
    return root


def options(sources: Path, out: Path) -> ImportConfig:
    paths = (sources / "unet", sources / "vae", sources / "text_encoder", sources / "vqgan.ckpt")
    return ImportConfig(*paths, out, "CC0-1.0", NAME, precision="fp32")


@pytest.fixture(scope="module")
def imported(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The checkpoint that the command makes."""
    out = tmp_path_factory.mktemp("imported") / "narrow"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, NAME, narrow())
        command = ["--preset", NAME, "--precision", "fp32", "--licence", "CC0-1.0"]
        for part in ("unet", "vae", "text-encoder", "vqgan"):
            name = part.replace("-", "_")
            command += [f"--{part}", str(sources / (name if part != "vqgan" else "vqgan.ckpt"))]
        assert main([*command, "--out", str(out)]) == 0
        return open_checkpoint(out)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert b.abs().max() > 1e-2  # zeros would be equal too
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_unet_is_that_of_diffusers_for_any_lr_latent(
    imported: Checkpoint, sources: Path
) -> None:
    theirs = UNet2DConditionModel.from_pretrained(sources / "unet").eval()
    z, lr, context = torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16, 16), torch.randn(1, 8, 64)
    t = torch.tensor([700.0])
    ours = imported.networks["unet"](torch.cat([z, lr], 1), t, context)
    close(ours, theirs(z, t, encoder_hidden_states=context).sample)


@torch.no_grad()
def test_the_autoencoder_is_that_of_diffusers(imported: Checkpoint, sources: Path) -> None:
    theirs = AutoencoderKL.from_pretrained(sources / "vae").eval()
    image, lr, z = (
        torch.rand(1, 3, 64, 64) * 2 - 1,
        torch.rand(1, 3, 16, 16),
        torch.randn(1, 4, 8, 8),
    )
    upsampled = nn.functional.interpolate(lr, scale_factor=4, mode="bilinear")
    for name, x, taken in (("hr_encoder", image, image), ("lr_encoder", lr, upsampled)):
        close(imported.networks[name](x), theirs.encode(taken).latent_dist.mean * 0.18215)
    close(imported.networks["decoder"](z), theirs.decode(z / 0.18215).sample)


@torch.no_grad()
def test_the_text_encoder_is_that_of_transformers(imported: Checkpoint, sources: Path) -> None:
    theirs = CLIPTextModel.from_pretrained(sources / "text_encoder").eval()
    ids = torch.randint(0, 96, (1, 77))
    close(imported.networks["text_encoder"](ids), theirs(ids).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("file", ["vqgan.ckpt", "vqgan.safetensors"])
def test_the_tokenizer_is_the_published_vqgan(sources: Path, p: Preset, file: str) -> None:
    theirs = VQGAN(WIDTHS, 2, 32, 48).eval()
    theirs.load_state_dict(load_file(sources / "vqgan.safetensors"))
    theirs.double()  # float32 errors reach 2e-5 over this many layers
    ours = import_vqgan(sources / file, p.tokenizer).double()
    image = torch.rand(1, 3, 256, 256).double() * 2 - 1
    features, codes, indices = theirs.tokens(image)
    close(ours.features(image), features)
    tokens, found = ours(image)
    assert torch.equal(found, indices)
    close(tokens, codes)
    z = torch.randn(1, 32, 4, 4).double()
    close(ours.vq.decoder(ours.vq.post_quant_conv(z)), theirs.decode(z))


def test_networks_without_published_weights_are_marked_and_refused(imported: Checkpoint) -> None:
    manifest = imported.bundle.manifest
    assert manifest.untrained == ("connector", "unet")
    assert "random" in manifest.provenance.notes
    assert [s["used_for"] for s in manifest.provenance.sources] == [
        "unet", "vae", "text_encoder", "vqgan",
    ]  # fmt: skip
    assert manifest.sampler.prediction_type == "v_prediction"
    with pytest.raises(BundleError, match=r"not a model yet: connector, unet have not been"):
        Upscaler(imported.bundle.root, backend="torch")


def test_one_network_is_loaded_alone(imported: Checkpoint) -> None:
    network, p = load_network(imported.bundle.root, "decoder")
    assert p.name == NAME
    for key, value in network.state_dict().items():
        assert torch.equal(value, imported.networks["decoder"].state_dict()[key])


def copy_with(folder: Path, out: Path, **config: object) -> Path:
    """A copy of a folder with changes to its config."""
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    data = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**data, **config}))
    return out


def test_other_networks_of_the_same_shapes_are_refused(
    sources: Path, p: Preset, tmp_path: Path
) -> None:
    unet = copy_with(sources / "unet", tmp_path / "unet", attention_head_dim=[4, 4, 4, 4])
    with pytest.raises(BundleError, match=r"attention_head_dim = .4, 4, 4, 4.; the preset has"):
        import_unet(unet, p)
    text = copy_with(sources / "text_encoder", tmp_path / "text", hidden_act="quick_gelu")
    with pytest.raises(BundleError, match="hidden_act = 'quick_gelu'; the preset has 'gelu'"):
        import_text_encoder(text, p)
    vae = copy_with(sources / "vae", tmp_path / "vae", scaling_factor=0.13025)
    with pytest.raises(BundleError, match=r"scaling_factor = 0.13025; the preset has 0.18215"):
        import_vae(vae, "decoder", p)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_missing_weights_are_refused(sources: Path, p: Preset, tmp_path: Path, part: str) -> None:
    folder = copy_with(sources / part, tmp_path / part)
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    state.pop(next(key for key in state if key.endswith("weight")))
    save_file(state, file, {"format": "pt"})
    importers = {
        "unet": import_unet,
        "vae": lambda folder, p: import_vae(folder, "decoder", p),
        "text_encoder": import_text_encoder,
    }
    with pytest.raises(BundleError, match=r"lacks 1 of the network's weights|cannot load"):
        importers[part](folder, p)


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_not_run(p: Preset, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "callbacks": Planted(tmp_path / "ran")}, tmp_path / "bad.ckpt")
    with pytest.raises(BundleError, match="holds more than weights"):
        import_vqgan(tmp_path / "bad.ckpt", p.tokenizer)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_such_vqgan_are_refused(sources: Path, p: Preset, tmp_path: Path) -> None:
    state = load_file(sources / "vqgan.safetensors")
    save_file({k: v for k, v in state.items() if ".attn." not in k}, tmp_path / "f8.safetensors")
    with pytest.raises(BundleError, match=r"does not fit the preset: Missing .*attentions"):
        import_vqgan(tmp_path / "f8.safetensors", p.tokenizer)
    with pytest.raises(BundleError, match="cannot be read as weights"):
        import_vqgan(tmp_path / "none.ckpt", p.tokenizer)
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(BundleError, match="cannot be read as weights"):
        import_vqgan(tmp_path / "text.safetensors", p.tokenizer)
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(BundleError, match="holds no state dict but a list"):
        import_vqgan(tmp_path / "list.ckpt", p.tokenizer)


def test_nothing_is_left_when_a_source_is_missing(
    sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(options(sources, tmp_path / "out"), text_encoder=tmp_path / "absent")
    with pytest.raises(BundleError, match=r"absent' must hold config\.json"):
        import_checkpoint(config)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OptionError, match="preset 'nano' has networks of our own"):
        replace(config, preset="nano")
    with pytest.raises(OptionError, match="'int8' is neither fp32 nor fp16"):
        replace(config, precision="int8")


@pytest.mark.parametrize("rescale", [None, False, True])
def test_the_noise_schedule_is_that_of_diffusers(
    p: Preset, tmp_path: Path, rescale: bool | None
) -> None:
    """As diffusers reads the file; older files lack the key."""
    DDIMScheduler(
        prediction_type="v_prediction", beta_schedule="scaled_linear", beta_start=0.001,
        rescale_betas_zero_snr=bool(rescale),
    ).save_pretrained(tmp_path)  # fmt: skip
    path = tmp_path / "scheduler_config.json"
    data = json.loads(path.read_text())
    if rescale is None:
        del data["rescale_betas_zero_snr"]
    path.write_text(json.dumps(data))
    theirs = DDIMScheduler.from_pretrained(tmp_path).alphas_cumprod.numpy()
    ours = make_schedule(_sampler(path, p)).alphas_cumprod
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert (ours[-1] == 0) == bool(rescale)


def test_a_flag_that_is_no_boolean_is_refused(p: Preset, tmp_path: Path) -> None:
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps({"rescale_betas_zero_snr": "yes"}))
    with pytest.raises(BundleError, match="rescale_betas_zero_snr = 'yes'; it must be true or"):
        _sampler(path, p)
