"""The dependencies in pyproject.toml are what the packages import: no more and no less.

The base is what the client imports, each extra is what its service imports beside it. An optional import stands in a
`try` that handles ImportError, and names the extra that installs the library.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from .structure import PACKAGES, ROOT, parsed, shipped

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GENERATED = {
    ".".join(path.relative_to(ROOT / "proto").with_suffix("").parts): path
    for path in (ROOT / "proto/zrelay/v1").glob("*_pb2*.py")
}
FILES = shipped(ROOT) | GENERATED

DISTRIBUTIONS = {
    # import -> the distribution that has it, where the names differ; the longest name wins
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "flash_attn": "flash-attn",
    "PIL": "pillow",
}

OPTIONAL = {
    # library that is imported in a `try` -> the extra that installs it
    "numpy": "analysis",
    "torch": "encoder",
    "flash-attn": "flash",
}

NEEDED_BY_LIBRARIES = {
    # (extra, distribution that it installs and zrelay does not import): what needs it
    ("vision", "numpy"): "the image processors of transformers",
    ("generator", "accelerate"): "diffusers, to load a model without a second copy of its weights",
}

SERVES = "zrelay_shared.service.lifecycle"
"""Imported by the function that serves, which the client never calls: `zrelay serve` becomes another process."""


def name_of(requirement: str) -> str:
    """Returns the name of a requirement: "torch" for "torch>=2.6; sys_platform == 'linux'"."""
    match = re.match(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?", requirement)
    assert match is not None
    return match.group()


def installed_by(*extras: str) -> set[str]:
    """Returns the distributions of extras, without those of the base."""
    found: set[str] = set()
    for extra in extras:
        for name in map(name_of, PROJECT["optional-dependencies"][extra]):
            nested = re.fullmatch(r"zrelay\[(.+)\]", name)
            found |= installed_by(*nested.group(1).split(",")) if nested else {name}
    return found


BASE = {name_of(requirement) for requirement in PROJECT["dependencies"]}


def runtime_imports(name: str) -> Iterator[tuple[str, bool]]:
    """Yields what a module imports when it runs, and whether it does without: `from a import b` as "a.b"."""
    yield from _imports_below(parsed(FILES[name]), optional=False)


def _imports_below(node: ast.AST, *, optional: bool) -> Iterator[tuple[str, bool]]:
    children: list[ast.AST] = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        children = list(node.orelse)
    elif isinstance(node, ast.Import):
        yield from ((alias.name, optional) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        if not node.level:  # a relative import names no library
            yield from ((f"{node.module}.{alias.name}", optional) for alias in node.names)
    elif isinstance(node, ast.Try):
        handled = " ".join(ast.unparse(handler.type) for handler in node.handlers if handler.type is not None)
        if "ImportError" in handled or "ModuleNotFoundError" in handled:
            for statement in node.body:
                yield from _imports_below(statement, optional=True)
            children = [*node.handlers, *node.orelse, *node.finalbody]
    for child in children:
        yield from _imports_below(child, optional=optional)


def reachable(package: str) -> set[str]:
    """Returns the modules of the product that run when modules of `package` are imported.

    Modules that are imported in a `try` count as libraries of an extra.
    """
    found: set[str] = set()
    waiting = {name for name in FILES if name.partition(".")[0] == package}
    while waiting:
        name = waiting.pop()
        found.add(name)
        targets = {
            module
            for imported, optional in runtime_imports(name)
            if not optional and (module := _module_of(imported)) is not None
        }
        packages = {
            ".".join(target.split(".")[:count]) for target in targets for count in range(1, target.count(".") + 1)
        }
        waiting |= ((targets | packages) & FILES.keys()) - found
        waiting -= {SERVES} if package == "zrelay_client" else set()
    return found


def _module_of(imported: str) -> str | None:
    return next((name for name in (imported, imported.rpartition(".")[0]) if name in FILES), None)


def distribution_of(imported: str) -> str:
    found = [name for name in DISTRIBUTIONS if imported == name or imported.startswith(f"{name}.")]
    return DISTRIBUTIONS[max(found, key=len)] if found else imported.partition(".")[0]


def third_party(package: str, *, optional: bool) -> dict[str, list[str]]:
    """Returns the distributions that the modules reachable from a package import, each with the modules that do."""
    found: dict[str, list[str]] = {}
    for module in sorted(reachable(package)):
        for imported, is_optional in runtime_imports(module):
            top = imported.partition(".")[0]
            if is_optional == optional and top not in PACKAGES and top not in sys.stdlib_module_names:
                found.setdefault(distribution_of(imported), []).append(module)
    return found


def test_the_client_imports_what_the_base_installs() -> None:
    lacking = {
        name: modules for name, modules in third_party("zrelay_client", optional=False).items() if name not in BASE
    }
    assert lacking == {}, "add it to `dependencies`, or import it in a `try` and name an extra"


def test_the_base_installs_what_the_client_imports() -> None:
    unused = BASE - third_party("zrelay_client", optional=False).keys()
    assert unused == set(), "move it to the extra of what imports it"


@pytest.mark.parametrize("package", ["zrelay_client", "zrelay_encoder", "zrelay_vision", "zrelay_generator"])
def test_an_optional_import_has_an_extra_that_the_message_names(package: str) -> None:
    for name, modules in third_party(package, optional=True).items():
        if name in BASE or (package != "zrelay_client" and name in installed_by(package.removeprefix("zrelay_"))):
            continue
        assert name in OPTIONAL, f"{name} is imported in a `try` by {', '.join(modules)}: name its extra in OPTIONAL"
        assert name in installed_by(OPTIONAL[name])
        silent = [module for module in modules if f"zrelay[{OPTIONAL[name]}]" not in FILES[module].read_text("utf-8")]
        assert silent == [] or name == "flash-attn", "the error names the command that installs it"


@pytest.mark.parametrize("role", ["encoder", "vision", "generator"])
def test_an_extra_installs_what_its_service_imports(role: str) -> None:
    needed = third_party(f"zrelay_{role}", optional=False).keys() - BASE
    extra = installed_by(role)
    assert needed - extra == set(), f"add it to the extra {role!r}"
    unused = extra - needed - third_party(f"zrelay_{role}", optional=True).keys()
    assert unused == {name for owner, name in NEEDED_BY_LIBRARIES if owner == role}


def test_everything_for_development_includes_what_the_demo_imports() -> None:
    needed = set(third_party("zrelay_demo", optional=False)) - BASE
    assert needed - installed_by("dev") == set()


def test_optional_and_type_checking_imports_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules above hold only if every kind of import is seen."""
    path = tmp_path / "sample.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "import one\n"
        "if TYPE_CHECKING:\n    import two\nelse:\n    import three\n"
        "try:\n    import four\nexcept ModuleNotFoundError:\n    import five\n"
        "def f():\n    from six.part import name\n"
    )
    monkeypatch.setitem(FILES, "sample", path)
    assert list(runtime_imports("sample")) == [
        ("typing.TYPE_CHECKING", False),
        ("one", False),
        ("three", False),
        ("four", True),
        ("five", False),
        ("six.part.name", False),
    ]
