"""What packages export: the client's public names, and nothing by accident."""

import ast
import inspect
from pathlib import Path

import pytest

import zrelay_client
from zrelay_shared import __version__, errors, status

ROOT = Path(__file__).parents[2]


def test_public_names_are_sorted_resolvable_and_listed() -> None:
    assert zrelay_client.__all__ == sorted(zrelay_client.__all__)
    assert dir(zrelay_client) == zrelay_client.__all__
    for name in zrelay_client.__all__:
        assert getattr(zrelay_client, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        zrelay_client.nonsense  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(zrelay_client.__file__).read_text())
    seen = {alias.asname or alias.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert set(zrelay_client.__all__) <= seen


def test_every_refusal_can_be_caught_by_its_public_name() -> None:
    missing = {kind.__name__ for kind in status.CLASSES} - set(zrelay_client.__all__)
    assert missing == set()
    assert zrelay_client.ZrelayError is errors.ZrelayError


def test_public_classes_and_functions_are_documented() -> None:
    bare = [name for name in zrelay_client.__all__ if callable(getattr(zrelay_client, name)) and not (
        inspect.getdoc(getattr(zrelay_client, name))
    )]  # fmt: skip
    assert bare == []


@pytest.mark.parametrize("package", ["zrelay_shared", "zrelay_encoder", "zrelay_vision", "zrelay_generator"])
def test_a_package_says_its_duty_and_imports_nothing_of_its_own(package: str) -> None:
    module = __import__(package)
    assert module.__doc__
    tree = ast.parse(Path(str(module.__file__)).read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]


def test_one_version() -> None:
    assert zrelay_client.__version__ == __version__
    assert 'path = "shared/zrelay_shared/__init__.py"' in (ROOT / "pyproject.toml").read_text()
