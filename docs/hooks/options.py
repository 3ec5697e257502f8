"""MkDocs hook: the table of options on `options.md`, generated from `UpscaleOptions`.

The page cannot drift from the code: names, types and defaults are the dataclass's own, the text is
the docstring below each field, and the rest is the field's `metadata`. A field without a docstring,
or without one of the keys of `METADATA`, fails the build.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

PAGE = "options.md"
"""The page that holds the marker."""
MARKER = "<!-- options of UpscaleOptions -->"
"""What the generated text replaces."""
METADATA = ("range", "unit", "example", "flag")
"""Keys that the metadata of every field must have."""


@dataclass(frozen=True)
class Option:
    """One option, as the page shows it."""

    name: str
    """Keyword of `Upscaler.upscale`."""
    flag: str
    """Flag of `mmsr-edge upscale`; empty: there is none."""
    annotation: str
    """Type, as in the source."""
    default: str
    """Default, as a Python expression."""
    range: str
    """Values that are allowed."""
    unit: str
    """Unit of a number; may be empty."""
    example: Any
    """A Python value that is allowed."""
    description: str
    """Docstring of the field, on one line."""


def options_table(options: type, source: str | None = None) -> str:
    """Markdown of a dataclass of options: one table of all fields, then a section for each.

    Args:
        options: The dataclass.
        source: Source text of its definition. None: as `inspect` finds it.

    Raises:
        ValueError: A field lacks a docstring or a key of `METADATA`, or the flag is used twice.
    """
    listed = read_options(options, source)
    head = "| Option | Command line | Default | Range | Unit |\n|---|---|---|---|---|\n"
    rows = "".join(
        f"| [`{option.name}`](#{option.name}) | {_code(option.flag)} | {_code(option.default)} "
        f"| {_cell(option.range)} | {_cell(option.unit) or '–'} |\n"
        for option in listed
    )
    return head + rows + "\n" + "\n".join(map(_section, listed))


def read_options(options: type, source: str | None = None) -> list[Option]:
    """The fields of a dataclass with their docstrings and metadata.

    Raises:
        ValueError: As `options_table`.
    """
    if source is None:
        source = textwrap.dedent(inspect.getsource(options))
    texts = field_docstrings(source, options.__name__)
    listed = [_option(field, texts.get(field.name, "")) for field in fields(options)]
    flags = [option.flag for option in listed if option.flag]
    for flag in flags:
        if flags.count(flag) > 1:
            raise ValueError(f"{options.__name__}: two fields have the flag {flag!r}")
    return listed


def field_docstrings(source: str, name: str) -> dict[str, str]:
    """The string below each annotated field of the class `name`, as one line each.

    Raises:
        ValueError: `source` does not define the class.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return {
                field.target.id: " ".join(text.value.value.split())
                for field, text in zip(node.body, node.body[1:], strict=False)
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            }
    raise ValueError(f"the source does not define a class {name!r}")


def _option(field: Field[Any], description: str) -> Option:
    if not description:
        raise ValueError(f"option {field.name!r} has no docstring below it")
    missing = [key for key in METADATA if key not in field.metadata]
    if missing:
        raise ValueError(f"option {field.name!r} lacks metadata: {', '.join(missing)}")
    if not field.metadata["range"]:
        raise ValueError(f"option {field.name!r} has an empty range")
    default = "required" if field.default is MISSING else _python(field.default)
    return Option(
        name=field.name,
        flag=field.metadata["flag"],
        annotation=field.type if isinstance(field.type, str) else field.type.__name__,
        default=default,
        range=field.metadata["range"],
        unit=field.metadata["unit"],
        example=field.metadata["example"],
        description=description,
    )


def _section(option: Option) -> str:
    lines = [
        f"### `{option.name}` {{ #{option.name} }}",
        "",
        option.description,
        "",
        f"- Type: `{option.annotation}`, default `{option.default}`",
        f"- Range: {option.range}" + (f"; unit: {option.unit}" if option.unit else ""),
        f"- Python: `upscale(picture, {option.name}={_python(option.example)})`",
    ]
    if option.flag:
        lines.append(f"- Command line: `{_shell(option.flag, option.example)}`")
    return "\n".join([*lines, ""])


def _python(value: object) -> str:
    """A value as one would type it in Python."""
    if isinstance(value, PurePath):
        return f'Path("{value.as_posix()}")'
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_python(k)}: {_python(v)}" for k, v in value.items()) + "}"
    return repr(value)


def _shell(flag: str, value: object) -> str:
    """A flag and its value as one would type them in a shell."""
    if isinstance(value, bool):  # `--fidelity`, and `--no-color-fix` for False
        return flag
    if isinstance(value, Mapping):
        return " ".join(f"{flag} {name}={_word(number)}" for name, number in value.items())
    return f"{flag} {_word(value)}"


def _word(value: object) -> str:
    if value is None:
        return "none"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f'"{text}"' if not text or set(text) & set(" *?[]'") else text


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else "–"


def _cell(text: str) -> str:
    """Text that may stand in a cell of a table."""
    return text.replace("|", "\\|")


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """MkDocs event: put the generated text into `options.md`.

    Raises:
        PluginError: The page lacks the marker, or a field of `UpscaleOptions` is incomplete.
    """
    from mkdocs.exceptions import PluginError

    from mmsr_edge.config import UpscaleOptions

    if page.file.src_uri != PAGE:
        return markdown
    if markdown.count(MARKER) != 1:
        raise PluginError(f"{PAGE} must hold {MARKER!r} once, to be replaced by the options")
    try:
        return markdown.replace(MARKER, options_table(UpscaleOptions))
    except ValueError as error:
        raise PluginError(f"{PAGE}: {error}") from error
