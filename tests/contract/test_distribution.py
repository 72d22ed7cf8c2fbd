"""The distributions are complete and their metadata is valid; pyproject.toml agrees with what else names versions."""

import io
import re
import tarfile
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from zrelay_shared import __version__

from .distribution import (
    CLIENT_TESTS,
    ENVIRONMENTS,
    PACKAGES,
    PYPROJECT,
    ROOT,
    Distributions,
    build,
    file_problems,
    metadata_problems,
    sdist_metadata,
    wheel_files,
    wheel_metadata,
)

PROJECT: dict[str, Any] = PYPROJECT["project"]
CI: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
PYTHONS = re.findall(r"Python :: (3\.\d+)\b", "\n".join(PROJECT["classifiers"]))
"""The supported versions of Python, oldest first."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """The distributions of this checkout, built once."""
    return build(tmp_path_factory.mktemp("dist"))


@pytest.mark.deep
def test_distributions_contain_the_packages_and_no_more(built: Distributions) -> None:
    assert file_problems(built) == []


@pytest.mark.deep
def test_a_missing_and_an_unexpected_file_are_reported(built: Distributions, tmp_path: Path) -> None:
    changed = tmp_path / built.sdist.name
    with tarfile.open(built.sdist) as source, tarfile.open(changed, "w:gz") as target:
        for member in source.getmembers():
            if not member.name.endswith("/zrelay_client/py.typed"):
                target.addfile(member, source.extractfile(member))
        target.addfile(tarfile.TarInfo(f"{built.sdist.name.removesuffix('.tar.gz')}/notes.txt"), io.BytesIO())
    assert file_problems(Distributions(changed, built.wheel)) == [
        "sdist: lacks client/zrelay_client/py.typed",
        "sdist: contains notes.txt, which it should not",
    ]


@pytest.mark.deep
def test_metadata_is_valid(built: Distributions) -> None:
    for content in (wheel_metadata(built.wheel), sdist_metadata(built.sdist)):
        assert metadata_problems(content) == []
        assert str(Metadata.from_email(content).version) == __version__
    wrong = wheel_metadata(built.wheel).replace(b"Typing :: Typed", b"Typing :: Often")
    assert metadata_problems(wrong) == ["unknown classifier: Typing :: Often"]


@pytest.mark.deep
def test_the_wheel_contains_the_contract_and_the_demo_weights(built: Distributions) -> None:
    files = wheel_files(built.wheel)
    for source in (ROOT / "proto" / "zrelay" / "v1").glob("*.proto"):
        assert {f"zrelay/v1/{source.stem}{suffix}" for suffix in (".proto", "_pb2.py", "_pb2.pyi")} <= files
    assert {name for name in files if name.endswith(".safetensors")} == {
        "zrelay_demo/checkpoint/text_encoder/model.safetensors",
        "zrelay_demo/checkpoint/transformer/diffusion_pytorch_model.safetensors",
        "zrelay_demo/checkpoint/vae/diffusion_pytorch_model.safetensors",
        "zrelay_demo/vision_checkpoint/omni/siglip_parts.safetensors",
        "zrelay_demo/vision_checkpoint/qwen3_vl/model.safetensors",
        "zrelay_demo/vision_checkpoint/siglip/model.safetensors",
    }


def test_every_package_is_typed_and_built() -> None:
    top = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/zrelay_*/__init__.py")}
    assert set(PACKAGES) == top | {"proto/zrelay"}
    assert [name for name in PACKAGES if not (ROOT / name / "py.typed").is_file()] == []
    included = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert [f"/{name}" for name in PACKAGES] + ["/CHANGELOG.md"] == included


def test_versions_agree() -> None:
    assert metadata("zrelay")["Version"] == __version__, "pip install -e . again"
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == __version__


def test_python_versions_agree() -> None:
    oldest = PYTHONS[0]
    assert PROJECT["requires-python"] == f">={oldest}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == oldest
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert f"Python {oldest} or later" in (ROOT / "README.md").read_text(encoding="utf-8")
    jobs = CI["jobs"]
    assert jobs["client"]["strategy"]["matrix"]["python"] == PYTHONS
    (setup,) = [step for step in jobs["everything"]["steps"] if "setup-python" in step.get("uses", "")]
    assert setup["with"]["python-version"] == oldest


def test_operating_systems_agree() -> None:
    matrix = CI["jobs"]["client"]["strategy"]["matrix"]
    systems = {*matrix["os"], *(entry["os"] for entry in matrix["include"])}
    classified = [name for name in PROJECT["classifiers"] if name.startswith("Operating System ::")]
    assert systems == {"macos-latest", "ubuntu-latest", "windows-latest"}
    assert len(classified) == len(systems)


def test_pinned_versions_satisfy_the_requirements() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pinned.items()}
    extras = {name: names for name, names in PROJECT["optional-dependencies"].items() if name != "flash"}
    wanted = [Requirement(text) for names in (PROJECT["dependencies"], *extras.values()) for text in names]
    for requirement in wanted:
        if requirement.name == "zrelay":
            continue
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt lacks {requirement.name}"
        assert SpecifierSet(str(requirement.specifier)).contains(version), f"{requirement} but {version} is pinned"


def test_every_extra_of_a_service_is_installed_alone_before_a_release() -> None:
    extras = set(PROJECT["optional-dependencies"]) - {"dev", "docs", "flash", "serving"}
    assert set(ENVIRONMENTS) == extras | {"base"}


def test_the_files_of_the_client_tests_exist() -> None:
    named = CLIENT_TESTS.read_text(encoding="utf-8").split()
    assert named == sorted(set(named))
    assert [name for name in named if not (ROOT / name).is_file()] == []
