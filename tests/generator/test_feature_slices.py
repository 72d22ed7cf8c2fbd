"""Every registered feature is a whole slice, and nothing outside its folder knows it."""

import ast
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

import pytest

import zrelay_generator
from zrelay.v1 import generation_pb2 as gpb
from zrelay_generator.api.replies import loading_info
from zrelay_generator.features.protocol import FeatureSpec, JobFeature, JobSpec
from zrelay_generator.features.registry import FEATURES, UNBUILT

PACKAGE = Path(zrelay_generator.__file__).parent
FOLDER_OF = {each.spec.__module__.split(".")[2]: each for each in FEATURES}
COMMON_FIELDS = {"prompt", "sampling", "preview", "output", "provenance", "priority", "deterministic"}
"""Fields of GenerationSpec that every job has."""


def imported(path: Path) -> set[str]:
    """Modules that a file imports, `from a import b` as a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_folder_is_registered_once() -> None:
    folders = {path.parent.name for path in (PACKAGE / "features").glob("*/__init__.py")}
    assert set(FOLDER_OF) == folders and len(FOLDER_OF) == len(FEATURES)


@pytest.mark.parametrize("folder", FOLDER_OF)
def test_a_feature_is_a_whole_slice(folder: str) -> None:
    feature = FOLDER_OF[folder]
    home = f"zrelay_generator.features.{folder}."
    assert issubclass(feature.spec, FeatureSpec) and is_dataclass(feature.spec) and fields(feature.spec)
    assert feature.spec.__dataclass_params__.frozen
    assert set(feature.fields) <= set(gpb.GenerationSpec.DESCRIPTOR.fields_by_name) - COMMON_FIELDS and feature.fields
    names = [capability.name for capability in feature.capabilities(None)]
    assert names and all(name.startswith("generate.") for name in names)
    assert feature.parse.__module__.startswith(home) and feature.hooks.__module__.startswith(home)
    hooks = [kind for kind in JobFeature.__subclasses__() if kind.__module__.startswith(home)]
    assert hooks, "it has a class of hooks"
    assert feature.spec.__module__.startswith(home), "its spec says what it adds to the provenance"


def test_a_field_and_a_capability_belong_to_one_feature_or_to_none_yet() -> None:
    owned = [name for feature in FEATURES for name in feature.fields]
    assert sorted([*owned, *UNBUILT, *COMMON_FIELDS]) == sorted(gpb.GenerationSpec.DESCRIPTOR.fields_by_name)
    listed = [feature.name for feature in loading_info("demo", None).features]
    assert len(listed) == len(set(listed))
    built = {capability.name for feature in FEATURES for capability in feature.capabilities(None)}
    assert built <= set(listed) and not built & set(UNBUILT.values())


@pytest.mark.parametrize("folder", FOLDER_OF)
def test_nothing_outside_its_folder_imports_a_feature(folder: str) -> None:
    name = f"zrelay_generator.features.{folder}"
    importing = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE / "features" / folder
        and any(module == name or module.startswith(f"{name}.") for module in imported(path))
    }
    assert importing == {"features/registry.py"}


def test_a_spec_is_found_by_its_kind(spec: Callable[[], JobSpec]) -> None:
    @dataclass(frozen=True)
    class Used(FeatureSpec):
        pass

    @dataclass(frozen=True)
    class AlsoUsed(FeatureSpec):
        pass

    parts = (Used(), AlsoUsed())
    job = replace(spec(), features=parts)
    assert job.feature(Used) is parts[0] and job.feature(AlsoUsed) is parts[1]
    assert [feature for feature in FEATURES if job.feature(feature.spec) is not None] == []
