"""The documents: generated where they can be, and held against the code where they cannot."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tokenize
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

import mmsr_edge
from mmsr_edge.config import UpscaleOptions

ROOT = Path(__file__).resolve().parents[1]

PAGES = [
    path
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if path.name not in ("journal.md", "glossary.md")
]
"""The pages that use today's words; the journal keeps its own, and the glossary explains them."""

REPLACED = re.compile(
    r"\b(taught|critics?|adversary|enlargers?|lookers|taught_\w+|critic_\w+|"
    r"PictureTeacher|fake_int8|picture_teacher|train_(?:finish|taught|compact))\b",
    re.IGNORECASE,
)
"""Words that the glossary replaces."""


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    """The module that makes the page of options."""
    spec = importlib.util.spec_from_file_location("options_hook", ROOT / "docs/hooks/options.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# --- The page of options -------------------------------------------------------------------------


def test_the_page_of_options_lists_every_option(hook: ModuleType) -> None:
    page = hook.options_table(UpscaleOptions)
    for option in fields(UpscaleOptions):
        assert f"### `{option.name}`" in page
        assert option.metadata["flag"] in page
    assert "Factor by which each side grows" in page  # the docstring below the field
    assert "-1 to 100" in page  # the range that is checked
    assert hook.MARKER in (ROOT / "docs/options.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("lacking", ["range", "unit", "example", "flag", "docstring"])
def test_an_option_that_says_too_little_fails_the_build(hook: ModuleType, lacking: str) -> None:
    about = {"range": "0 to 1", "unit": "", "example": 1, "flag": "--a"}
    about.pop(lacking, None)

    @dataclass
    class Planted:
        a: int = field(default=0, metadata=about)

    source = "class Planted:\n    a: int = 0\n" + (
        "" if lacking == "docstring" else '    """A."""\n'
    )
    with pytest.raises(ValueError, match=lacking):
        hook.options_table(Planted, source)


# --- What the documents say of the code -----------------------------------------------------------


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    page = (ROOT / "docs/api/index.md").read_text(encoding="utf-8")
    missing = {name for name in mmsr_edge.__all__ if f"`{name}`" not in page}
    assert missing == set()


def test_versions_are_those_of_the_code_and_the_model() -> None:
    sdk = mmsr_edge.__version__
    manifest = ROOT / "mmsr_edge/bundles/nano/manifest.json"
    nano = json.loads(manifest.read_text(encoding="utf-8"))["version"]
    assert metadata.version("mmsr-edge") == sdk
    page = (ROOT / "docs/versions.md").read_text(encoding="utf-8")
    assert f"| {sdk} | nano {nano} |" in page
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.findall(r"^## \[(.+?)\]", changes, re.MULTILINE)
    assert sdk in newest[:2]  # an "Unreleased" section may come before it


def links(text: str) -> list[str]:
    """Addresses of the links and pictures of a page in Markdown."""
    found: list[tuple[str, str]] = re.findall(r"\]\(([^)\s]+)\)|<(https?://[^>]+)>", text)
    return [one or other for one, other in found]


def broken_links(text: str) -> set[str]:
    """Links of a README that are not absolute, or name a file of ours that is not there."""
    homes = dict(
        line.split(", ", 1) for line in metadata.metadata("mmsr-edge").get_all("Project-URL") or ()
    )
    source = homes["Source"]
    raw = source.replace("https://github.com", "https://raw.githubusercontent.com")
    places = [f"{source}/blob/main/", f"{raw}/main/"]
    broken = set()
    for link in links(text):
        if not link.startswith("https://"):
            broken.add(link)
        for place in places:
            if link.startswith(place) and not (ROOT / link.removeprefix(place)).exists():
                broken.add(link)
        if link.startswith(homes["Documentation"]):
            page = link.removeprefix(homes["Documentation"]).partition("#")[0].strip("/")
            names = [f"docs/{page or 'index'}.md", f"docs/{page}/index.md"]
            if not any((ROOT / name).exists() for name in names):
                broken.add(link)
    return broken


def test_the_readmes_links_work_on_a_package_index() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(links(text)) > 10
    assert broken_links(text) == set()
    planted = "[a](docs/limits.md) [b](https://github.com/mmsr-edge/mmsr-edge/blob/main/GONE.md)"
    assert len(broken_links(planted)) == 2


def test_the_checks_run_the_readmes_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    command = "pip install nox && python -m nox"
    assert f"    {command}\n" in text
    assert command in (ROOT / ".ci/run").read_text(encoding="utf-8")


# --- One vocabulary -------------------------------------------------------------------------------


def replaced_words(text: str) -> set[str]:
    """Words in a text that the glossary replaces."""
    return {found.lower() for found in REPLACED.findall(text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_use_the_glossarys_words(page: Path) -> None:
    assert replaced_words(page.read_text(encoding="utf-8")) == set()


def test_the_code_uses_the_glossarys_words() -> None:
    folders = ("mmsr_edge", "converters", "runtimes", "calib", "benchmarks", "examples")
    found = {}
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            with tokenize.open(path) as file:
                if words := replaced_words(file.read()):
                    found[path.relative_to(ROOT).as_posix()] = words
    assert found == {}


def test_a_replaced_word_is_found() -> None:
    planted = "def critic_loss():\n    # the enlarger's answer, taught\n    return Critic()\n"
    assert replaced_words(planted) == {"critic_loss", "enlarger", "taught", "critic"}
    assert replaced_words("distillation, discriminator, critical, a teacher") == set()
