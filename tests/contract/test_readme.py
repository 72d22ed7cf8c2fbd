"""README is right: its commands, targets, files and folders exist, and its library example compiles."""

import re
import shlex
from pathlib import Path

import click
import pytest

from zrelay_client.cli import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", README, re.MULTILINE)
LINES = [line.strip() for block in BLOCKS for line in block.splitlines()]
SPANS = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
COMMANDS = sorted({text.split("#")[0].strip().rstrip("& ") for text in [*LINES, *SPANS] if text.startswith("zrelay ")})
MADE = {"circle.png"}
"""Files that a command makes: `make demo-eval`, the example."""


def parsed(command: str) -> click.Context:
    """The context that click would run the command in. Raises click's usage errors."""
    found: click.Command | None = cli
    rest = shlex.split(command)[1:]
    with click.Context(cli, info_name="zrelay") as context:
        name: str | None = ""
        while isinstance(found, click.Group) and rest and not rest[0].startswith("-"):
            name, found, rest = found.resolve_command(context, rest)
        assert isinstance(found, click.Command)
        return found.make_context(name, list(rest), parent=context)


def test_there_is_something_to_check() -> None:
    assert len(COMMANDS) >= 12
    assert len(LINES) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command: str) -> None:
    parsed(command)


@pytest.mark.parametrize("wrong", ["zrelay paint", "zrelay up --detached", "zrelay config begin", "zrelay serve mars"])
def test_a_wrong_command_would_be_found(wrong: str) -> None:
    with pytest.raises(click.UsageError):
        parsed(wrong)


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {match for text in [*LINES, *SPANS] for match in re.findall(r"^make ([a-z-]+)", text)}
    assert {"demo", "test", "bench"} <= named
    assert named <= targets


def test_every_file_that_is_named_exists() -> None:
    links = set(re.findall(r"\]\((?!https?:|#)([^)#\s]+)", README))
    spans = {text for text in SPANS if re.fullmatch(r"[\w./-]+\.(md|toml|txt|json|png|py)|[\w-]+/[\w./-]+", text)}
    words = set(re.findall(r"\b(?:docs|benchmarks|deploy|tests)/[\w./-]*\w\.\w+", README))
    named = (links | spans | words) - MADE
    assert {"constraints.txt", "docs/contract.md"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_folder_of_the_tree_exists_and_none_is_left_out() -> None:
    (tree,) = [block for block in BLOCKS if "shared/zrelay_shared/" in block]
    folders = {word for line in tree.splitlines() for word in line.split() if re.fullmatch(r"[\w/]+/", word)}
    assert [name for name in sorted(folders) if not (ROOT / name).is_dir()] == []
    packages = {path.parent.relative_to(ROOT).as_posix() + "/" for path in ROOT.glob("*/zrelay_*/__init__.py")}
    assert packages <= folders


def test_the_library_example_compiles() -> None:
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert examples
    for example in examples:
        compile(example, "README.md", "exec")
