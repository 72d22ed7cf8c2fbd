"""tests/floors.txt has the oldest versions that pyproject.toml allows, and the hostile tests run with them."""

import re
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.helpers.floors import FLOORS

from .structure import ROOT
from .test_dependencies import PROJECT

READERS = {
    "grpcio",
    "grpcio-health-checking",
    "grpcio-reflection",
    "grpcio-status",
    "pillow",
    "protobuf",
    "safetensors",
}
"""Libraries that read what callers and files contain, and those of the same release."""


def floors() -> dict[str, Version]:
    lines = [line for line in FLOORS.read_text("utf-8").splitlines() if not line.startswith("#")]
    return {name: Version(version) for name, version in (line.split("==") for line in lines)}


def requirements() -> Iterator[Requirement]:
    for text in (
        *PROJECT["dependencies"],
        *(one for extra in PROJECT["optional-dependencies"].values() for one in extra),
    ):
        yield Requirement(text)


def test_the_floors_name_every_library_that_reads_what_others_sent() -> None:
    assert floors().keys() >= READERS


@pytest.mark.parametrize("name", floors())
def test_a_floor_is_the_oldest_version_that_is_allowed(name: str) -> None:
    found = [requirement for requirement in requirements() if requirement.name == name]
    assert found
    for requirement in found:
        assert str(requirement.specifier) == f">={floors()[name]}", requirement


def test_the_pipeline_runs_the_hostile_tests_with_the_floors() -> None:
    assert re.search(r"^run_tests test-floors\b", (ROOT / ".ci/run").read_text("utf-8"), re.MULTILINE)
