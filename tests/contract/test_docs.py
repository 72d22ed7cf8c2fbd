"""The documentation is right: generated pages are current, commands, links and paths exist, examples compile."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import click
import pytest
import yaml

from tests.helpers.tools import find_tool
from zrelay_client.cli import cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(page.relative_to(ROOT).as_posix() for page in (*DOCS.rglob("*.md"), *ROOT.glob("*.md")))
GENERATORS = sorted(script.stem for script in (DOCS / "_generators").glob("[!_]*.py"))
GENERATED = {"reference/cli.md", "reference/contract.md"}
"""Pages whose text comes from elsewhere: their commands are examples of help texts."""
_FENCE = re.compile(r"^( *)```(\w*).*?\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^(?: {4}|\t).*\n)+", re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(zrelay (?!.*\.\.\.).*)")


def _text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def _code(page: str) -> tuple[list[str], list[str]]:
    """Returns the lines of the code blocks of a page, except Python's, and its code spans."""
    text = _text(page)
    blocks = [block for _, language, block in _FENCE.findall(text) if language != "python"]
    text = _FENCE.sub("", text)
    blocks += _INDENTED.findall(text)
    return [line.strip() for block in blocks for line in block.splitlines()], _SPAN.findall(_INDENTED.sub("", text))


def _commands(position: int) -> list[str]:
    """Returns the zrelay commands in the code blocks (position 0) or spans (1) of all pages written by hand."""
    pages = [page for page in PAGES if page.removeprefix("docs/") not in GENERATED and page != "CHANGELOG.md"]
    lines = [re.sub(r"\s+#.*| &$", "", line) for page in pages for line in _code(page)[position]]
    return sorted({match[1].strip() for line in lines if (match := _COMMAND.fullmatch(line))})


def _links(page: str) -> list[str]:
    """Returns the links of a page that lead to files."""
    return re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", _FENCE.sub("", _text(page)))


def _paths(page: str) -> list[str]:
    """Returns the paths of the repository that a page names."""
    tops = "proto|shared|encoder_service|vision_service|generator_service|client|demo|deploy|benchmarks|tests|docs"
    return re.findall(rf"(?<![\w/.-])(?:{tops})/[\w./-]*\w/?(?![\w*<{{-])", _text(page))


BLOCKS, SPANS = _commands(0), _commands(1)
EXAMPLES = [
    pytest.param(page, example, id=f"{page}-{number}")
    for page in PAGES
    for number, example in enumerate(
        example for _, language, example in _FENCE.findall(_text(page)) if language in {"python", "py"}
    )
]


def _resolve(words: list[str], context: click.Context) -> tuple[str | None, click.Command, list[str]]:
    """Returns the command that a command line names, its name, and its arguments."""
    found: click.Command | None = cli
    name: str | None = "zrelay"
    while isinstance(found, click.Group) and words and not words[0].startswith("-"):
        name, found, words = found.resolve_command(context, words)
    assert found is not None
    return name, found, words


def _parse(command: str) -> None:
    """Parses a command line as click does before it runs the command. Raises click's usage errors."""
    with click.Context(cli, info_name="zrelay") as context:
        name, found, words = _resolve(shlex.split(command)[1:], context)
        try:
            found.make_context(name, words, parent=context, resilient_parsing="--help" in words)
        except click.exceptions.Exit:  # --version
            return


@pytest.mark.parametrize("name", GENERATORS)
def test_generated_pages_are_current(name: str) -> None:
    if name == "contract":
        find_tool("buf", "pip install buf-bin")
    script = runpy.run_path(str(DOCS / "_generators" / f"{name}.py"))
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"](), f"run `python docs/_generators/{name}.py`"


def test_there_is_something_to_check() -> None:
    assert len(GENERATORS) == 5 and len(BLOCKS) > 50 and len(SPANS) > 20
    assert len(EXAMPLES) > 20
    assert sum(len(_links(page)) for page in PAGES) > 100
    assert sum(len(_paths(page)) for page in PAGES) > 50


@pytest.mark.parametrize("command", BLOCKS)
def test_every_command_parses(command: str) -> None:
    _parse(command)


@pytest.mark.parametrize("command", SPANS)
def test_commands_in_sentences_have_these_options(command: str) -> None:
    with click.Context(cli, info_name="zrelay") as context:
        _, found, words = _resolve(command.replace("serve ROLE", "serve generator").split()[1:], context)
        known = {option for param in found.get_params(context) for option in (*param.opts, *param.secondary_opts)}
    assert [word for word in words if re.match(r"--?[a-z]", word) and word not in known] == []


@pytest.mark.parametrize("wrong", ["zrelay paint", "zrelay up --detached", "zrelay config begin", "zrelay serve mars"])
def test_a_wrong_command_would_be_found(wrong: str) -> None:
    with pytest.raises(click.UsageError):
        _parse(wrong)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    targets = [(ROOT / page).parent.joinpath(link).resolve() for link in _links(page)]
    # A link that leaves the repository is one to a page of GitHub, such as ../../security/advisories/new.
    assert [target for target in targets if target.is_relative_to(ROOT) and not target.exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_paths_of_the_repository_exist(page: str) -> None:
    planned = re.compile(r"controlnet|lora|dype")  # how-to/add-a-feature.md creates these
    missing = [path for path in _paths(page) if not (ROOT / path).exists() and not planned.search(path)]
    assert missing == []


@pytest.mark.parametrize(("page", "example"), EXAMPLES)
def test_a_python_example_compiles(page: str, example: str) -> None:
    compile(example, page, "exec")


@pytest.mark.parametrize(
    ("language", "program"),
    [("sh", "generate.sh"), ("js", "node/generate.mjs"), ("python", "generate_grpclib.py")],
)
def test_programs_in_other_languages_are_those_that_tests_run(language: str, program: str) -> None:
    page = _text("docs/how-to/other-languages.md")
    [shown] = [block for _, named, block in _FENCE.findall(page) if named == language]
    assert shown == _text(f"tests/foreign/{program}")


def test_an_example_that_does_not_compile_would_be_found() -> None:
    with pytest.raises(SyntaxError):
        test_a_python_example_compiles("page", "with Client( as client:")


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = [line for page in PAGES for part in _code(page) for line in part]
    named = {match for line in lines for match in re.findall(r"^make ([a-z-]+)", line)}
    assert {"demo", "test", "docs", "bench"} <= named
    assert named <= targets


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 100


def test_contributing_names_every_package() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/zrelay_*/__init__.py")}
    assert [name for name in sorted(packages) if f"`{name}`" not in _text("CONTRIBUTING.md")] == []


def test_every_page_is_in_the_navigation_once() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    sections = [section for entry in nav for section in entry.values()]
    listed = [page for section in sections for page in ([section] if isinstance(section, str) else section)]
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, without warnings."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


class _Loaded(HTMLParser):
    """Collects the addresses that a browser loads with a page: scripts, styles, fonts, images and frames."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "a":
            self.addresses += [value for name, value in attrs if name in {"src", "srcset", "href", "data"} and value]


@pytest.mark.deep  # imports MkDocs with all its plugins
def test_the_site_names_no_other_server(site: Path) -> None:
    pages, styles = sorted(site.rglob("*.html")), sorted(site.rglob("*.css"))
    loaded = {page: _Loaded(page).addresses for page in pages}
    loaded |= {
        style: re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s]+)", style.read_text("utf-8")) for style in styles
    }
    assert len(pages) > 30 and len(styles) > 2 and sum(map(len, loaded.values())) > 300
    other = re.compile(r"(?!data:)\s*(?:[a-z]+:)?//", re.IGNORECASE)
    assert {file.name: address for file in loaded for address in loaded[file] if other.match(address)} == {}
    # Material's own script would load these from other servers.
    drawn = [
        page.name for page in pages if re.search(r'class="mermaid"|data-md-component="source"', page.read_text("utf-8"))
    ]
    assert drawn == []


@pytest.mark.deep
def test_a_site_opened_from_files_can_be_searched(site: Path, tmp_path: Path) -> None:
    """In a browser that resolves no name, so that nothing can come from another server."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((name for name in names if shutil.which(name)), None)
    if browser is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000"]
    page = f"{(site / 'how-to' / 'install.html').as_uri()}?q=lease"
    shown = subprocess.run([*command, "--dump-dom", page], capture_output=True, text=True, check=True, timeout=120)
    assert "matching documents" in shown.stdout
    found = re.findall(r'<a href="([^"]+)" class="md-search-result__link"', shown.stdout)
    assert any(address.startswith((site / "explanation" / "jobs.html").as_uri()) for address in found)
