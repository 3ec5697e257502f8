"""The facade: pictures of any size, reproducible results, tiles, and refusals."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundle_factory import CHANNELS, RESIDUAL_SCALE, SCALE, TILE, make_bundle, reference
from photo_factory import photo, pixels
from PIL import Image

import mmsr_edge.upscaler as upscaler_module
from mmsr_edge import BundleError, ImageError, OptionError, OutputError, Upscaler, choice
from mmsr_edge.bundle import MAPS, open_bundle, write_manifest
from mmsr_edge.modalities.prompt import encode_prompt
from mmsr_edge.pipeline import PictureRun
from mmsr_edge.tiling import plan_tiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from mmsr_edge.upscaler import Progress

    Array = npt.NDArray[Any]

BACKENDS = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=BACKENDS)
def any_backend(request: pytest.FixtureRequest, root: Path, cache: Path) -> Upscaler:
    pytest.importorskip(request.param)
    return Upscaler(root, request.param, threads=1, cache_dir=cache)


@pytest.fixture(scope="module")
def upscaler(root: Path) -> Upscaler:
    return Upscaler(root, "onnxruntime", threads=1)


# --- Results ------------------------------------------------------------------------------------


def test_one_tile_equals_the_reference(any_backend: Upscaler) -> None:
    """Two steps of DDIM on the reference networks, written out."""
    picture = photo(TILE, TILE)
    depth = np.linspace(0, 1, TILE * TILE, dtype=np.float32).reshape(TILE, TILE)
    result = any_backend.upscale(
        picture, prompt="a disc", depth=depth, edges=None, seed=5, color_fix=False
    )

    lr = (picture / 127.5 - 1).transpose(2, 0, 1)[None]
    manifest = any_backend.bundle.manifest
    embedding = reference.text_encoder(encode_prompt("a disc, sharp", manifest.text))
    tokens = reference.tokenizer(np.broadcast_to(depth * 2 - 1, (1, 3, TILE, TILE)))
    context = reference.connector([embedding, tokens, None, None], (1, 1, 1, 1))
    z_lr = reference.lr_encoder(lr)
    # Scaled-linear betas, rescaled to zero terminal SNR: sqrt(alpha) at the middle timestep.
    root_alphas = np.sqrt(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
    root_alphas -= root_alphas[-1]
    a = root_alphas[499] * np.sqrt(1 - 0.00085) / root_alphas[0]
    b = np.sqrt(1 - a**2)
    side = z_lr.shape[-1]
    drawn = np.random.Generator(np.random.Philox(5)).standard_normal((side, side, CHANNELS), "f4")
    z = drawn.transpose(2, 0, 1)[None]
    z_0 = -reference.unet(np.concatenate([z, z_lr], axis=1), 999, context)
    z = a * z_0 + b * z
    z_0 = a * z - b * reference.unet(np.concatenate([z, z_lr], axis=1), 499, context)
    expected = reference.decoder(z_lr + np.array(RESIDUAL_SCALE)[:, None, None] * z_0)

    shown = (expected[0].transpose(1, 2, 0).clip(-1, 1) + 1) * 127.5
    assert np.abs(pixels(result) - shown).max() < 0.51
    assert result.backend == any_backend.backend


@pytest.mark.parametrize("size", [(1, 1), (37, 211), (300, 180)], ids=str)
def test_any_size(any_backend: Upscaler, size: tuple[int, int]) -> None:
    width, height = size
    result = any_backend(photo(height, width))
    assert result.image.size == (width * SCALE, height * SCALE)
    assert result.image.mode == "RGB"


def test_the_backends_agree(root: Path, cache: Path) -> None:
    for backend in BACKENDS:
        pytest.importorskip(backend)
    picture = photo(50, 70)
    first, second = (
        pixels(Upscaler(root, backend, cache_dir=cache)(picture, prompt="a disc"))
        for backend in BACKENDS
    )
    assert np.abs(first.astype(int) - second).max() <= 1


def test_the_same_seed_gives_the_same_bytes(any_backend: Upscaler, root: Path, cache: Path) -> None:
    picture = photo(40, 50)
    first = pixels(any_backend(picture, seed=3))
    assert pixels(any_backend(picture, seed=3)).tobytes() == first.tobytes()
    fresh = Upscaler(root, any_backend.backend, threads=1, cache_dir=cache)
    assert pixels(fresh(picture, seed=3)).tobytes() == first.tobytes()
    other = pixels(any_backend(picture, seed=4))
    assert np.abs(first.astype(int) - other).mean() > 1


def test_path_image_and_array_are_the_same_picture(upscaler: Upscaler, tmp_path: Path) -> None:
    picture = photo(20, 30)
    Image.fromarray(picture).save(tmp_path / "in.png")
    for source in (tmp_path / "in.png", str(tmp_path / "in.png"), Image.fromarray(picture)):
        np.testing.assert_array_equal(pixels(upscaler(source)), pixels(upscaler(picture)))


def test_the_colour_fix_gives_the_colours_of_the_input(upscaler: Upscaler) -> None:
    picture = photo(40, 40)

    def drift(*, color_fix: bool) -> float:
        large = pixels(upscaler(picture, color_fix=color_fix)).astype(float)
        small = large.reshape(40, SCALE, 40, SCALE, 3).mean(axis=(1, 3))
        return float(np.abs((small - picture).mean(axis=(0, 1))).max())

    assert drift(color_fix=False) > 10  # this UNet shifts colours
    assert drift(color_fix=True) < 1


def test_opacity_profile_and_exif_are_kept(upscaler: Upscaler, tmp_path: Path) -> None:
    opacity = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1))
    source = Image.fromarray(np.dstack([photo(30, 40), opacity]))
    exif = Image.Exif()
    exif[0x010E] = "a disc"
    source.save(tmp_path / "in.png", exif=exif, icc_profile=b"not looked at")
    result = upscaler(tmp_path / "in.png", output=tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as written:
        np.testing.assert_array_equal(np.asarray(written), pixels(result))
        assert written.mode == "RGBA"
        assert written.getexif()[0x010E] == "a disc"
    alpha = pixels(result)[..., 3].reshape(30, SCALE, 40, SCALE).mean(axis=(1, 3))
    assert np.abs(alpha - opacity).max() < 4
    opaque = upscaler(source.convert("RGB"))
    assert opaque.image.mode == "RGB"


# --- Tiles --------------------------------------------------------------------------------------


class Windows:
    """Records the inputs of every tile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[tuple[Array, dict[str, Array], Array]] = []
        original = PictureRun.denoise

        def denoise(
            run: PictureRun, lr: Array, maps: Any, noise: Array, dials: Any
        ) -> Iterator[Any]:
            self.given.append((lr, maps, noise))
            return original(run, lr, maps, noise)

        monkeypatch.setattr(PictureRun, "denoise", denoise)


def test_neighbouring_tiles_share_noise_and_pixels_in_their_overlap(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = Windows(monkeypatch)
    picture = photo(TILE, 2 * TILE - 8)  # two tiles that share the eight pixels of the overlap
    upscaler(picture)
    (lr, _, noise), (next_lr, _, next_noise) = windows.given
    np.testing.assert_array_equal(noise[..., -4:], next_noise[..., :4])
    np.testing.assert_array_equal(lr[..., -8:], next_lr[..., :8])
    np.testing.assert_allclose(lr[0].transpose(1, 2, 0), picture[:, :TILE] / 127.5 - 1, atol=1e-6)
    assert np.abs(noise - next_noise).max() > 0.5


@pytest.mark.parametrize("size", [(1, 1), (37, 211), (75, 50)], ids=str)
def test_every_pixel_keeps_its_place(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """With a decoder that repeats each pixel of its tile, the result repeats each pixel."""
    windows = Windows(monkeypatch)

    def decode(run: PictureRun, latent: Array, lr: Array, maps: Any) -> Array:
        return windows.given[-1][0].repeat(SCALE, axis=2).repeat(SCALE, axis=3)

    monkeypatch.setattr(PictureRun, "decode", decode)
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for color_fix in (True, False):
        windows.given.clear()
        result = upscaler(picture, steps=1, color_fix=color_fix)
        np.testing.assert_array_equal(
            pixels(result), picture.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        )


def test_maps_are_made_once_and_cropped_to_each_tile(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = Windows(monkeypatch)
    height, width = TILE, 3 * TILE
    ramp = np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1))
    upscaler(photo(height, width), depth=ramp, segmentation=(ramp > 0.5).astype(np.uint8))
    seen = []
    for _, maps, _ in windows.given:
        assert set(maps) == set(MAPS)
        seen.append(float(maps["depth"].mean()))
        # Classes are never mixed: black, or the palette's first colour, here that of the subject.
        colours = np.round((maps["segmentation"] + 1) * 127.5, 3)
        assert set(np.unique(colours)) <= {0, 160}
    lefts = [tile.left for tile in plan_tiles(height, width, upscaler.bundle.manifest.tile)]
    expected = [2 * ramp[0, left : left + TILE].mean() - 1 for left in lefts]
    np.testing.assert_allclose(seen, expected, atol=0.01)


def test_a_large_map_of_a_tiny_picture_is_shrunk_before_it_is_reflected(
    upscaler: Upscaler,
) -> None:
    # Reflected at full size, the map would have 16384 x 16384 pixels.
    result = upscaler(photo(1, 1), depth=np.eye(512, dtype=np.float32))
    depth = result.maps["depth"]
    assert depth is not None
    assert depth.size == (1, 1)


# --- Refusals -----------------------------------------------------------------------------------


def test_a_misspelt_option_is_named_with_its_neighbour(upscaler: Upscaler) -> None:
    with pytest.raises(OptionError, match="unknown option 'promt'; did you mean 'prompt'"):
        upscaler.upscale(photo(8, 8), promt="x")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "tflite"}, OptionError, "'tflite'.*openvino"),
        ({"backend": "onnxruntime", "precision": "int2"}, OptionError, "'int2'.*fp32"),
        ({"backend": "onnxruntime", "threads": 0}, OptionError, "threads 0 must be >= 1"),
        ({"backend": "onnxruntime", "device": ""}, OptionError, "device '' is empty"),
        ({"backend": "onnxruntime", "compile": True}, OptionError, "'onnxruntime' compiles by it"),
    ],
)
def test_a_bad_choice_of_backend(
    root: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Upscaler(root, **options)


def test_a_device_that_is_not_there_is_named(root: Path, cache: Path) -> None:
    upscaler = Upscaler(root, "onnxruntime", cache_dir=cache, device="npu")
    with pytest.raises(OptionError, match=r"device 'npu'.*'cpu' only"):
        upscaler.upscale(photo(8, 8))


def test_a_bundle_whose_tiles_miss_the_latent_grid(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path))
    tile = replace(bundle.manifest.tile, multiple_of=1)
    write_manifest(tmp_path, replace(bundle.manifest, tile=tile))
    with pytest.raises(BundleError, match=r"multiples of 1, .* latent cells of 8"):
        Upscaler(tmp_path, "onnxruntime")


def test_a_picture_or_map_that_cannot_be_read(upscaler: Upscaler, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        upscaler(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        upscaler(photo(8, 8), depth=tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match=r"classes from 0 to 300"):
        upscaler(photo(8, 8), segmentation=np.array([[0, 300]]))


def test_an_output_that_cannot_be_written_is_refused_before_the_run(
    upscaler: Upscaler, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    for name in ("out.xyz", "no/such/folder/out.png"):
        with pytest.raises(OutputError):
            upscaler(photo(8, 8), output=tmp_path / name, progress=seen.append)
    transparent = np.zeros((8, 8, 4), np.uint8)
    with pytest.raises(OutputError, match="transparency"):
        upscaler(transparent, output=tmp_path / "out.jpg", progress=seen.append)
    assert not seen
    assert not list(tmp_path.iterdir())


def test_the_device_side_runs_without_torch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "diffusers", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    Upscaler(root, "onnxruntime")(photo(8, 8))


# --- Choice of the model ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "taken", "reason"),
    [
        ({"small": 0.4}, "small", "small takes 0.40 s a tile here; small is taken"),
        ({"small": 0.9, "nano": 0.2}, "nano", "small takes 0.90 s a tile here; nano takes 0.20 s"),
        ({"small": 9.0, "nano": 4.0}, "nano", "nano takes 4.00 s a tile here; nano is taken"),
    ],
)
def test_auto_takes_the_best_model_that_is_fast_enough(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[str, float],
    taken: str,
    reason: str,
) -> None:
    opened = []

    def open_named(model: str) -> Any:
        opened.append(model)
        return open_bundle(root)

    monkeypatch.setattr(choice, "best_shipped", lambda: ("small", "nano"))
    monkeypatch.setattr(upscaler_module, "open_bundle", open_named)
    monkeypatch.setattr(Upscaler, "_tile_seconds", lambda self: seconds[opened[-1]])
    chosen = Upscaler("auto", "onnxruntime")
    assert opened[-1] == taken and opened == list(seconds)
    assert reason in chosen.choice and "(limit 0.5 s)" in chosen.choice


def test_a_tile_is_timed_once_its_networks_are_loaded(upscaler: Upscaler) -> None:
    picture = np.zeros((TILE, TILE, 3), np.uint8)
    upscaler.upscale(picture)
    measured = upscaler._tile_seconds()
    usual = min(upscaler.upscale(picture).timings["total"] for _ in range(3))
    assert usual / 4 < measured < 4 * usual
    assert not upscaler.choice  # it was named
