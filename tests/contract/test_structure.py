"""The structure of the product: no import cycles, a class name once, and a docstring in every module."""

import ast
from pathlib import Path

import pytest

from .structure import (
    PACKAGES,
    ROOT,
    components,
    cycles,
    levels,
    module_graph,
    parsed,
    repeated_class_names,
    shipped,
    sub_package_graph,
)

FILES = shipped(ROOT)

MAX_LIBRARY_MODULES, MAX_LIBRARY_LEVELS = 35, 8
"""Of the client library: `zrelay_client` without `cli`, `stack`, `testing`, `__init__` and `__main__`."""


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_cycle_between_modules(package: str) -> None:
    """Imports within functions and under TYPE_CHECKING count."""
    assert cycles(module_graph(FILES, package)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_cycle_between_sub_packages(package: str) -> None:
    assert cycles(sub_package_graph(module_graph(FILES, package))) == []


def test_the_client_library_is_shallow() -> None:
    """The longest chain of imports within the library, and its number of modules."""
    packages = {name for name, path in FILES.items() if path.name == "__init__.py"}
    graph = {
        name: targets
        for name, targets in module_graph(FILES, "zrelay_client").items()
        if name not in packages and name.split(".")[1] not in ("cli", "stack", "testing", "__main__")
    }
    library = {name: targets & graph.keys() for name, targets in graph.items()}
    assert cycles(library) == []
    assert levels(library) <= MAX_LIBRARY_LEVELS
    assert len(library) <= MAX_LIBRARY_MODULES


def test_a_class_name_exists_once() -> None:
    assert repeated_class_names(FILES) == {}, "rename one of each: a class name exists once in the product"


def test_every_module_has_a_docstring() -> None:
    bare = [name for name, path in FILES.items() if not ast.get_docstring(parsed(path))]
    assert bare == []


def test_refusals_of_fields_are_made_in_one_place() -> None:
    """Services and shared code use `invalid` and `invalid_from`, so that every refusal has the same form."""
    own = {
        "zrelay_shared.errors",  # makes them
        "zrelay_shared.config",  # CONFIG_INVALID: the file as a whole
        "zrelay_shared.wire",  # MESSAGE_MALFORMED: a message before it has fields
        "zrelay_shared.message_scan",  # MESSAGE_TOO_COMPLEX: likewise
    }
    found = {
        name
        for name, path in FILES.items()
        if not name.startswith("zrelay_client")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "InvalidArgument"
    }
    assert found == own


def test_graphs_of_a_small_package(tmp_path: Path) -> None:
    """The rules above hold only if the graph sees every kind of import."""
    package = tmp_path / "shared/zrelay_shared"
    for name, text in {
        "__init__": "",
        "top": "import zrelay_shared.middle.one\n",
        "middle/__init__": "",
        "middle/one": "from zrelay_shared.low import two\n",
        "middle/three": "def f():\n    from .. import top\n",
        "low/__init__": "",
        "low/two": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..middle.three import f\n",
    }.items():
        file = package / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    graph = module_graph(shipped(tmp_path), "zrelay_shared")
    assert graph["zrelay_shared.top"] == {"zrelay_shared.middle.one"}
    circle = {"zrelay_shared.top", "zrelay_shared.middle.one", "zrelay_shared.low.two", "zrelay_shared.middle.three"}
    assert cycles(graph) == [sorted(circle)]
    assert cycles(sub_package_graph(graph)) == [["zrelay_shared.low", "zrelay_shared.middle"]]
    assert levels(graph) == 1


def test_levels_and_components() -> None:
    graph = {"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": {"e"}, "e": {"d"}, "f": set[str]()}
    assert [part for part in components(graph) if len(part) > 1] == [{"d", "e"}]
    assert levels(graph) == 3
