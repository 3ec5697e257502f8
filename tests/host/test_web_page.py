"""The web page, driven in a browser: `pip install '.[web,onnx]' playwright`, then `-m browser`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).resolve().parents[2] / "examples" / "web_page.py"
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
MISSING = [
    *(name for name in ("gradio", "playwright", "onnx") if not importlib.util.find_spec(name)),
    *(["chromium"] if not Path(CHROMIUM).exists() else []),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SECONDS = 60
"""Longest wait, in seconds; the machine may be busy."""

needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the page, with a tiny model that has a network for every map."""
    from bundle_factory import make_bundle

    folder = tmp_path_factory.mktemp("web")
    make_bundle(folder / "tiny", optional=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    log = folder / "log"
    command = [sys.executable, str(PAGE), "--model", str(folder / "tiny"), "--port", port]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder / "uploads")}
    with log.open("w") as out:
        page = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        until(lambda: "Ctrl-C" in log.read_text() or page.poll() is not None)
        assert page.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
        assert "Traceback" not in log.read_text()
    finally:
        page.send_signal(signal.SIGINT)
        page.wait(SECONDS)


@pytest.fixture
def browser_page(address: str) -> Iterator[Any]:
    """The page on a small screen; requests to any other server fail the test."""
    from playwright.sync_api import sync_playwright

    asked: set[str] = set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(SECONDS * 1000)
        page.on("request", lambda request: asked.add(request.url))
        page.goto(address)
        page.get_by_label("Prompt").wait_for()
        yield page
        browser.close()
    others = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert others == []


def until(done: Any) -> None:
    """Wait until `done()` is true."""
    end = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def upload(page: Any, path: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(path)


def shown(page: Any) -> list[str]:
    """Addresses of the pictures before and after, which are hashes of their content."""
    return [image.get_attribute("src") for image in page.locator(".slider-wrap img").all()]


@needs_browser
@pytest.mark.browser
def test_a_photo_and_the_dials(browser_page: Any, tmp_path: Path) -> None:
    page = browser_page
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)).save(photo)
    upload(page, photo)
    report = page.get_by_label("Report")
    until(lambda: "120 × 96 in" in report.input_value())
    assert "Caption: sharp" in report.input_value()
    until(lambda: len(shown(page)) == 2)
    before, after = shown(page)
    for name in ("depth", "segmentation", "edges"):
        page.get_by_text(name, exact=True).last.wait_for()

    # Dragging a dial updates the result.
    page.get_by_label("range slider for Edges").scroll_into_view_if_needed()
    box = page.get_by_label("range slider for Edges").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    until(lambda: len(shown(page)) == 2 and shown(page)[1] != after)
    assert shown(page)[0] == before

    # So does an arrow key,
    after = shown(page)[1]
    page.get_by_label("range slider for Seed").press("ArrowRight")
    until(lambda: len(shown(page)) == 2 and shown(page)[1] != after)

    # and a typed number.
    after = shown(page)[1]
    seed = page.get_by_label("number input for Seed")
    seed.fill("7")
    seed.press("Tab")
    until(lambda: len(shown(page)) == 2 and shown(page)[1] != after)

    page.get_by_label("Prompt").fill("a brick wall")
    page.get_by_label("Prompt").press("Enter")
    until(lambda: "Caption: a brick wall, sharp" in report.input_value())


@needs_browser
@pytest.mark.browser
def test_a_file_that_is_no_picture(browser_page: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    upload(browser_page, tmp_path / "bad.png")
    browser_page.get_by_text("bad.png is not a picture in a format that Pillow reads").wait_for()
    assert browser_page.get_by_label("Report").input_value() == ""


def test_without_gradio_the_message_names_the_extra() -> None:
    code = (
        "import runpy, sys; sys.modules['gradio'] = None; "
        f"sys.argv = ['web_page.py']; runpy.run_path({str(PAGE)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    advice = """'gradio' is not installed; it comes with: pip install "mmsr-edge[web]"\n"""
    assert done.stderr == advice
