"""Writes docs/reference/cli.md from the commands of the command line: `python docs/_generators/cli.py`.

The page holds what `--help` prints. Commands write their help to a `click.HelpFormatter`. Here they write it to one
that produces Markdown, so groups of options and other sections of a command need no further code.
"""

import html
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from zrelay_client.cli import cli

PAGE = Path(__file__).parents[1] / "reference/cli.md"
_START = """\
# The command line

<!-- Written by docs/_generators/cli.py from the commands; do not edit. -->

Every command prints this text with `--help`. Settings of a client and of a service can also be given in the
configuration file or as environment variables; see [Configuration](configuration.md).
"""


class MarkdownFormatter(click.HelpFormatter):
    """Formats the help of a command as Markdown: sections as bold lines, definition lists as tables."""

    def __init__(self) -> None:
        super().__init__(width=100)

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        self.write(f"\n```\n{prog} {args}\n```\n")

    def write_heading(self, heading: str) -> None:
        self.write(f"\n**{_escaped(heading)}**\n")

    def write_paragraph(self) -> None:
        if self.buffer and not self.buffer[-1].endswith("\n\n"):
            self.write("\n")

    def write_text(self, text: str) -> None:
        """Writes paragraphs. One that starts with \\b keeps its lines, as in click, and becomes a code block."""
        for paragraph in re.split(r"\n\s*\n", text):
            verbatim, body = paragraph.lstrip(" \n").startswith("\b"), paragraph.replace("\b", "").strip("\n")
            if not body.strip():
                continue
            if verbatim or re.match(r" {2,}\S", body):
                self.write(f"\n```\n{_dedented(body)}\n```\n")
            else:
                self.write(f"\n{_escaped(' '.join(body.split()))}\n")

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        self.write("\n| | |\n|---|---|\n")
        for name, text in rows:
            choices = re.fullmatch(r"(.*) \[?([\w-]+(?:\|[\w-]+)+)\]?", name)
            if choices:
                name, words = choices[1], choices[2].split("|")
                text = text if "One of" in text else f"{text} One of {', '.join(f'`{word}`' for word in words)}."
            self.write(f"| {_code(name)} | {_escaped(' '.join(text.split()))} |\n")


def page() -> str:
    """Returns the text of the page."""
    with click.Context(cli, info_name="zrelay", **cli.context_settings) as context:
        return _START + "".join(_sections(cli, context, 2))


def _sections(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    formatter = MarkdownFormatter()
    command.format_help(context, formatter)
    text = re.sub(r"\n{3,}", "\n\n", formatter.getvalue()).strip("\n")
    yield f"\n{'#' * min(level, 4)} {context.command_path}\n\n{text}\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                with click.Context(child, info_name=name, parent=context, **child.context_settings) as inner:
                    yield from _sections(child, inner, level + 1)


def _code(text: str) -> str:
    """Returns a code span for a cell of a table, where `|` must be an entity."""
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def _escaped(text: str) -> str:
    """Escapes what Markdown would read as markup, outside of code spans."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([|<>*_\[\]])", r"\\\1", part) for part in parts)


def _dedented(text: str) -> str:
    lines = text.splitlines()
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[indent:].rstrip() for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
