"""The facade: any size in, four times the size out, the same on every backend and every time."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundle_factory import CHANNELS, RESIDUAL_SCALE, SCALE, TILE, make_bundle, reference
from PIL import Image

from mmsr_edge import (
    BackendError,
    BundleError,
    Cancelled,
    ImageError,
    OptionError,
    OutputError,
    Result,
    Upscaler,
)
from mmsr_edge.bundle import MAPS, open_bundle, write_manifest
from mmsr_edge.modalities.canny import canny
from mmsr_edge.modalities.prompt import encode_prompt
from mmsr_edge.pipeline import MultimodalPipeline, PictureRun
from mmsr_edge.tiling import plan_tiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from mmsr_edge.upscaler import Progress

    Array = npt.NDArray[Any]

BACKENDS = ("onnxruntime", "openvino")


def photo(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Smooth shading, one disc: edges, but not everywhere."""
    y, x = np.mgrid[:height, :width] / max(height, width, 2)
    shades = np.stack([x, y, 0.5 + 0.4 * np.sin(7 * (x + y))], axis=-1)
    shades[(x - 0.3) ** 2 + (y - 0.4) ** 2 < 0.04] = (0.9, 0.2, 0.1)
    return np.round(shades.clip(0, 1) * 255).astype(np.uint8)


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


def pixels(result: Result) -> Array:
    return np.asarray(result.image)


# --- What comes out -----------------------------------------------------------------------------


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

    assert drift(color_fix=False) > 10  # this UNet knows nothing of colours
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
    """Notes what every tile is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[tuple[Array, dict[str, Array], Array]] = []
        original = PictureRun.denoise

        def denoise(run: PictureRun, lr: Array, maps: Any, noise: Array) -> Iterator[Any]:
            self.given.append((lr, maps, noise))
            return original(run, lr, maps, noise)

        monkeypatch.setattr(PictureRun, "denoise", denoise)


def test_neighbouring_tiles_start_from_the_same_noise_and_see_the_same_pixels(
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
def test_every_pixel_lands_where_it_belongs(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """With a decoder that shows its own tile four times as large, so is the picture."""
    windows = Windows(monkeypatch)

    def decode(run: PictureRun, latent: Array, lr: Array) -> Array:
        return windows.given[-1][0].repeat(SCALE, axis=2).repeat(SCALE, axis=3)

    monkeypatch.setattr(PictureRun, "decode", decode)
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for color_fix in (True, False):
        windows.given.clear()
        result = upscaler(picture, steps=1, color_fix=color_fix)
        np.testing.assert_array_equal(
            pixels(result), picture.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        )


def test_maps_are_made_once_and_cropped_where_the_tile_is(
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
        # Classes are never mixed: black, or the palette's first colour.
        colours = np.round((maps["segmentation"] + 1) * 127.5, 3)
        assert set(np.unique(colours)) <= {0, 128}
    lefts = [tile.left for tile in plan_tiles(height, width, upscaler.bundle.manifest.tile)]
    expected = [2 * ramp[0, left : left + TILE].mean() - 1 for left in lefts]
    np.testing.assert_allclose(seen, expected, atol=0.01)


def test_a_large_map_of_a_tiny_picture_is_shrunk_before_it_is_reflected(
    upscaler: Upscaler,
) -> None:
    # Reflected at full size it would have 16384 x 16384 pixels.
    result = upscaler(photo(1, 1), depth=np.eye(512, dtype=np.float32))
    depth = result.maps["depth"]
    assert depth is not None
    assert depth.size == (1, 1)


# --- Modalities ---------------------------------------------------------------------------------------


def test_edges_are_cannys_and_the_others_absent_without_a_word(upscaler: Upscaler) -> None:
    picture = photo(50, 40)
    result = upscaler(picture)
    edges = result.maps["edges"]
    assert edges is not None
    found = canny(np.float32(picture / 127.5 - 1))
    assert 0 < found.mean() < 0.5
    np.testing.assert_array_equal(np.asarray(edges), found * 255)
    assert result.maps["depth"] is None
    assert result.maps["segmentation"] is None
    assert result.warnings == []


def test_a_flat_picture_goes_on_without_edges_and_says_so(upscaler: Upscaler) -> None:
    flat = np.full((40, 40, 3), 90, np.uint8)
    result = upscaler(flat)
    assert result.maps["edges"] is None
    assert result.warnings == ["edges is left out: Canny finds none in this picture"]
    np.testing.assert_array_equal(pixels(result), pixels(upscaler(flat, edges=None)))
    assert upscaler(flat, edges=None).warnings == []


def test_the_maps_of_a_result_can_be_given_back(upscaler: Upscaler) -> None:
    picture = photo(50, 40)
    first = upscaler(picture, depth=picture[..., 0])
    again = upscaler(picture, depth=first.maps["depth"], edges=first.maps["edges"])
    np.testing.assert_array_equal(pixels(first), pixels(again))


@pytest.mark.parametrize("name", MAPS)
def test_every_map_and_its_temperature_make_a_difference(upscaler: Upscaler, name: str) -> None:
    picture = photo(30, 30)
    given = {name: np.eye(30, dtype=np.uint8)}
    options = {**dict.fromkeys(MAPS), "color_fix": False}
    without = pixels(upscaler(picture, **options))
    plain = pixels(upscaler(picture, **{**options, **given}))
    weak = pixels(upscaler(picture, **{**options, **given}, temperature={name: 10}))
    assert (without != plain).any()
    assert (plain != weak).any()
    elsewhere = {other: 10.0 for other in MAPS if other != name}
    same = pixels(upscaler(picture, **{**options, **given}, temperature=elsewhere))
    np.testing.assert_array_equal(plain, same)


def test_the_bundles_own_networks_make_depth_and_segmentation(tmp_path: Path) -> None:
    upscaler = Upscaler(make_bundle(tmp_path, optional=True), "onnxruntime", threads=1)
    picture = photo(64, 32)  # squeezed to the networks' square
    result = upscaler(picture)
    assert result.calls["depth"] == result.calls["segmentation"] == 1
    depth, segmentation = result.maps["depth"], result.maps["segmentation"]
    assert depth is not None
    assert segmentation is not None
    assert depth.size == segmentation.size == (32, 32)
    small = picture.reshape(32, 2, 32, 3).mean(axis=1)
    assert np.abs(np.asarray(depth) - small.mean(axis=-1)).mean() < 6
    colours = {tuple(colour) for colour in np.asarray(segmentation).reshape(-1, 3).tolist()}
    assert colours == {(0, 0, 0), (128, 0, 0), (0, 128, 0)}  # classes 0, 1, 2

    switched_off = upscaler(picture, depth=None, segmentation=None)
    assert "depth" not in switched_off.calls
    flat = upscaler(np.full((40, 40, 3), 9, np.uint8), edges=None)
    assert flat.maps["depth"] is None
    assert flat.maps["segmentation"] is None
    assert flat.warnings == [
        "depth is left out: the network finds the same depth everywhere",
        "segmentation is left out: the network finds nothing that it knows",
    ]


def test_the_caption_is_what_the_text_encoder_got(upscaler: Upscaler) -> None:
    picture = np.full((20, 20, 3), 128, np.uint8)
    assert upscaler(picture, prompt="a disc").caption == "a disc, sharp"
    # Without a tagger, the words that need none.
    assert upscaler(picture, prompt="auto").caption == "daylight, soft, grey, smooth, sharp"
    assert upscaler(picture).caption == "sharp"
    assert upscaler(picture, prompt=None).caption == ""


def test_tags_become_the_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler = Upscaler(make_bundle(tmp_path, optional=True), "onnxruntime", threads=1)
    red = np.full((40, 300, 3), (220, 40, 40), np.uint8)
    result = upscaler(red, prompt="auto")
    assert result.calls["captioner"] == 1 and result.timings["words"] > 0
    means = red[0, 0] / 127.5 - 1
    sure = np.exp(4 * means) / np.exp(4 * means).sum()
    assert result.tags == {"tomato": pytest.approx(sure[0], abs=1e-4)}  # the others are unlikely
    assert result.caption == "tomato, daylight, soft, red, smooth, sharp"
    assert (pixels(result) == pixels(upscaler(red, prompt=result.caption[:-7]))).all()
    mine = upscaler(red, prompt="a fire engine")
    assert (mine.caption, mine.tags, mine.calls.get("captioner")) == (
        "a fire engine, sharp", {}, None
    )  # fmt: skip
    assert upscaler(red, prompt=None).calls.get("text_encoder") is None

    def fail(component: str, *rest: Any) -> Any:
        if component == "captioner":
            raise BackendError("out of luck")
        return run(component, *rest)

    run = upscaler.pipeline.run
    monkeypatch.setattr(upscaler.pipeline, "run", fail)
    result = upscaler(red, prompt="auto")
    assert result.caption == "daylight, soft, red, smooth, sharp"
    assert result.warnings[0] == "tags are left out: out of luck"


# --- Progress and cancellation ------------------------------------------------------------------


def test_progress_rises_to_one_once(upscaler: Upscaler) -> None:
    seen: list[Progress] = []
    upscaler(photo(40, 100), steps=3, progress=seen.append)
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == 1
    assert fractions.count(1) == 1
    assert [p.stage for p in seen if p.stage not in {"sampling", "decoding"}] == [
        "maps",
        "finishing",
        "done",
    ]
    tiles = seen[0].tiles
    assert tiles == 8
    walked = [(p.tile, p.step) for p in seen if p.stage == "sampling"]
    assert walked == [(tile, step) for tile in range(1, tiles + 1) for step in range(4)]


def test_what_the_progress_callback_raises_ends_the_call(upscaler: Upscaler) -> None:
    def complain(progress: Progress) -> None:
        if progress.step == 1:
            raise KeyError(progress.stage)

    with pytest.raises(KeyError, match="sampling"):
        upscaler(photo(20, 20), progress=complain)


@pytest.mark.parametrize("at", [1, 2, 7])
def test_cancelling_takes_effect_before_the_next_network_call(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at: int
) -> None:
    cancel = threading.Event()
    called: list[str] = []
    original = MultimodalPipeline.run

    def run(pipeline: Any, component: str, feeds: Any, picture: Any) -> Any:
        called.append(component)
        if called.count("unet") == at:
            cancel.set()
        return original(pipeline, component, feeds, picture)

    monkeypatch.setattr(MultimodalPipeline, "run", run)
    out = tmp_path / "out.png"
    out.write_bytes(b"of before")
    with pytest.raises(Cancelled):
        upscaler(photo(40, 100), guidance="m-cfg", guidance_scale=1, cancel=cancel, output=out)
    assert called.count("unet") == at
    assert called[-1] == "unet"
    assert out.read_bytes() == b"of before"
    assert list(tmp_path.iterdir()) == [out]


def test_cancelling_after_the_last_network_call_still_writes_nothing(
    upscaler: Upscaler, tmp_path: Path
) -> None:
    cancel = threading.Event()

    def stop(progress: Progress) -> None:
        if progress.stage == "finishing":
            cancel.set()

    with pytest.raises(Cancelled):
        upscaler(photo(9, 9), progress=stop, cancel=cancel, output=tmp_path / "out.png")
    assert not list(tmp_path.iterdir())


def test_several_threads_do_not_disturb_one_another(any_backend: Upscaler) -> None:
    picture = photo(40, 60)
    alone = [pixels(any_backend(picture, seed=seed, prompt=f"{seed}")) for seed in range(3)]
    together: dict[int, Result] = {}
    gate = threading.Barrier(3)

    def work(seed: int) -> None:
        gate.wait()
        together[seed] = any_backend(picture, seed=seed, prompt=f"{seed}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        np.testing.assert_array_equal(pixels(together[seed]), alone[seed])
        assert together[seed].calls["unet"] == 2 * 6
        assert together[seed].seed == seed


# --- What is refused ----------------------------------------------------------------------------


def test_a_misspelt_option_is_named_with_its_neighbour(upscaler: Upscaler) -> None:
    with pytest.raises(OptionError, match="unknown option 'promt'; did you mean 'prompt'"):
        upscaler.upscale(photo(8, 8), promt="x")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"backend": "tflite"}, OptionError, "'tflite'.*openvino"),
        ({"backend": "onnxruntime", "precision": "int2"}, OptionError, "'int2'.*fp32"),
        ({"backend": "onnxruntime", "threads": 0}, OptionError, "threads 0 must be >= 1"),
        ({"backend": "onnxruntime", "device": ""}, OptionError, "device '' is empty"),
        ({"backend": "onnxruntime", "compile": True}, OptionError, "'onnxruntime' compiles by it"),
    ],
)
def test_a_bad_choice_of_backend(
    root: Path, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
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


def test_an_output_that_cannot_be_written_is_found_out_before_the_work(
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
