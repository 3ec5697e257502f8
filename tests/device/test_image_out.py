"""Writing pictures: pixels, metadata, and every way in which writing can fail."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from picture_factory import (
    COPYRIGHT,
    EXIF_DIRECTORY,
    LENS,
    ORIENTATION,
    SRGB,
    exif_with,
    noise,
    signed,
)
from PIL import Image

from mmsr_edge import image
from mmsr_edge.errors import OutputError
from mmsr_edge.image import pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def test_result_pixels_are_rounded_and_clipped() -> None:
    values = noise(150, 3, 3)
    np.testing.assert_array_equal(pixels.to_bytes(signed(values).astype(np.float32)), values)
    result = image.to_pil(np.array([[[-7, 0.0, 7]]], np.float32))
    assert result.mode == "RGB"
    assert result.getpixel((0, 0)) == (0, 128, 255)


def test_alpha_comes_back_four_times_as_large() -> None:
    ramp = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (12, 1))
    source = image.load_image(np.dstack([noise(12, 16, 3), ramp]))
    result = image.to_pil(np.zeros((48, 64, 3), np.float32), source)
    assert result.mode == "RGBA"
    expected = Image.fromarray(ramp).resize((64, 48), Image.Resampling.BICUBIC)
    difference = np.asarray(result.getchannel("A"), int) - np.asarray(expected, int)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".PNG"])
def test_profile_and_exif_go_round(suffix: str, tmp_path: Path) -> None:
    given = Image.fromarray(np.add.outer(np.arange(0, 80, 20), np.arange(18)).astype(np.uint8))
    given.resize((6, 4)).save(tmp_path / "in.jpg", exif=exif_with(3), icc_profile=SRGB)
    source = image.load_image(tmp_path / "in.jpg")
    path = tmp_path / f"out{suffix}"
    image.save_image(image.to_pil(source.rgb.repeat(4, 0).repeat(4, 1), source), path)
    with Image.open(path) as written:
        assert written.size == (24, 16)
        assert written.info["icc_profile"] == SRGB
        exif = written.getexif()
        assert exif[COPYRIGHT] == "someone"
        assert exif.get(ORIENTATION, 1) == 1
        details = exif.get_ifd(EXIF_DIRECTORY)
        assert details[LENS] == "50 mm"
        assert (details[0xA002], details[0xA003]) == (24, 16)
    again = image.load_image(path)
    assert again.exif is not None
    np.testing.assert_allclose(again.rgb, source.rgb.repeat(4, 0).repeat(4, 1), atol=0.1)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_transparency_goes_round(suffix: str, tmp_path: Path) -> None:
    rgba = Image.fromarray(noise(6, 6, 4))
    image.save_image(rgba, tmp_path / f"out{suffix}")
    alpha = image.load_image(tmp_path / f"out{suffix}").alpha
    assert alpha is not None
    np.testing.assert_array_equal(np.round(alpha * 255), np.asarray(rgba.getchannel("A")))


def test_jpeg_takes_an_opaque_alpha_and_no_other(tmp_path: Path) -> None:
    rgba = Image.fromarray(noise(6, 6, 4))
    with pytest.raises(OutputError, match=r"JPEG cannot hold transparency.*\.png"):
        image.save_image(rgba, tmp_path / "out.jpg")
    assert list(tmp_path.iterdir()) == []
    rgba.putalpha(255)
    image.save_image(rgba, tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as written:
        assert written.mode == "RGB"


def test_exif_too_long_for_jpeg_is_left_out(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[COPYRIGHT] = "x" * 70_000
    picture = Image.fromarray(noise(4, 4, 3))
    picture.info["exif"] = exif.tobytes()
    with pytest.warns(UserWarning, match="too long"):
        image.save_image(picture, tmp_path / "out.jpg")
    image.save_image(picture, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as written:
        assert len(written.getexif()[COPYRIGHT]) == 70_000


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """A read-only folder. Root may write anywhere, and is another user during the test."""
    Image.init()  # imports Pillow's plugins while this user may
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "old.png").write_bytes(b"old")
        folder.chmod(0o555)
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="Windows folders have no such mode")
@pytest.mark.parametrize("name", ["new.png", "old.png"])
def test_a_read_only_folder(
    name: str, closed_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.fromarray(noise(4, 4, 3))
    with pytest.raises(OutputError, match="read-only"):
        image.check_output(closed_folder / name)
    with pytest.raises(OutputError, match="read-only"):
        image.save_image(picture, closed_folder / name)
    # The check may pass wrongly, as on some network drives.
    monkeypatch.setattr(os, "access", lambda *_, **__: True)
    with pytest.raises(OutputError, match=r"cannot be written.*Permission denied"):
        image.save_image(picture, closed_folder / name)
    assert [path.name for path in closed_folder.iterdir()] == ["old.png"]
    assert (closed_folder / "old.png").read_bytes() == b"old"


def test_a_folder_without_access(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def closed(self: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", closed)
    with pytest.raises(OutputError, match=r"new\.png cannot be written: Permission denied"):
        image.check_output(tmp_path / "new.png")


def full_disk(self: Image.Image, file: io.BufferedWriter, *_: object, **__: object) -> None:
    file.write(b"half a picture")
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(self: Image.Image, file: io.BufferedWriter, *_: object, **__: object) -> None:
    file.write(b"half a picture")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [(full_disk, OutputError, "No space left"), (interrupt, KeyboardInterrupt, None)],
)
@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_write_leaves_everything_as_it_was(
    failure: Callable[..., None],
    error: type[BaseException],
    message: str | None,
    existing: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "out.png"
    if existing:
        path.write_bytes(b"old")
    monkeypatch.setattr(Image.Image, "save", failure)
    with pytest.raises(error, match=message):
        image.save_image(Image.fromarray(noise(4, 4, 3)), path)
    assert list(tmp_path.iterdir()) == ([path] if existing else [])
    assert not existing or path.read_bytes() == b"old"


def test_an_existing_file_is_replaced_with_ordinary_permissions(tmp_path: Path) -> None:
    path, other = tmp_path / "out.png", tmp_path / "other"
    path.write_bytes(b"old")
    image.save_image(Image.fromarray(noise(4, 4, 3)), path)
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode
    assert image.load_image(path).size == (4, 4)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "real" / "out.png")
    image.save_image(Image.fromarray(noise(4, 4, 3)), link)
    assert link.is_symlink()
    assert (tmp_path / "real" / "out.png").is_file()


def test_invalid_outputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "folder.png").mkdir()
    for name, message, options in (
        ("out.gif", r"'\.gif'.*\.png, \.jpg", {}),
        ("out", "suffix ''", {}),
        ("gone/out.png", "no folder", {}),
        ("a.png/out.png", "no folder", {}),
        ("folder.png", "is a folder", {}),
        ("a.png", "exists", {"overwrite": False}),
        ("out.jpg", "transparency", {"transparent": True}),
        ("out.webp", "16384 x 9 pixels are more than the 16383", {"size": (16384, 9)}),
    ):
        with pytest.raises(OutputError, match=message):
            image.check_output(tmp_path / name, **options)
    assert image.check_output(tmp_path / "a.png").name == "PNG"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
def test_xmp_goes_round(suffix: str, tmp_path: Path) -> None:
    picture = Image.fromarray(noise(4, 4, 3))
    picture.info["xmp"] = b"<x:xmpmeta>what</x:xmpmeta>"
    picture.info["exif"] = exif_with(1)
    image.save_image(picture, tmp_path / f"out{suffix}")
    loaded = image.load_image(tmp_path / f"out{suffix}")
    assert loaded.xmp == picture.info["xmp"]
    exif = Image.Exif()
    exif.load(loaded.exif or b"")
    assert exif[COPYRIGHT] == "someone"
