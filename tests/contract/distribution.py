"""Builds the distributions and checks them as users get them: `make release-check` runs this file.

    python tests/contract/distribution.py [--environments base,encoder,...] [--allow-changes]

Builds the sdist, and the wheel from the sdist. Checks their metadata and files. Then installs the wheel into a new
environment for each extra alone, and starts the command line and each service that the extra is for.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.metadata import Metadata
from trove_classifiers import classifiers as KNOWN_CLASSIFIERS

ROOT = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES: list[str] = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
"""The package folders, relative to the root of the repository."""

ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "base": (),
    "analysis": (),
    "encoder": ("encoder",),
    "vision": ("vision",),
    "generator": ("generator",),
    "all": ("encoder", "vision", "generator"),
}
"""Extra (`base` is none) -> the roles that it serves."""

CLIENT_TESTS = ROOT / "tests" / "client_only.txt"
"""The test files that need the base installation and no more, one path a line."""

TEST_TOOLS = ("pytest", "pytest-asyncio", "pytest-timeout", "hypothesis")
"""What the tests in `CLIENT_TESTS` need besides the wheel."""

START_S = 180
"""How long a service may take to load the demo checkpoint on a busy machine."""


@dataclass(frozen=True)
class Distributions:
    """The two files that a release uploads."""

    sdist: Path
    wheel: Path


def build(folder: Path) -> Distributions:
    """Builds the sdist into a folder, and the wheel from the unpacked sdist, as installers do."""
    _hatchling("sdist", folder, ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
        _hatchling("wheel", folder, Path(unpacked) / sdist.name.removesuffix(".tar.gz"))
    (wheel,) = folder.glob("*.whl")
    return Distributions(sdist, wheel)


def sources() -> set[str]:
    """Returns the files of the packages, relative to the root, without what Python caches beside them."""
    found = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def wheel_files(wheel: Path) -> set[str]:
    """Returns the files of a wheel without its metadata folder."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def sdist_files(sdist: Path) -> set[str]:
    """Returns the files of an sdist, relative to its top folder."""
    with tarfile.open(sdist) as archive:
        return {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}


def wheel_metadata(wheel: Path) -> bytes:
    """Returns the METADATA file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return archive.read(name)


def sdist_metadata(sdist: Path) -> bytes:
    """Returns the PKG-INFO file of an sdist."""
    with tarfile.open(sdist) as archive:
        content = archive.extractfile(f"{sdist.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert content is not None
        return content.read()


def file_problems(built: Distributions) -> list[str]:
    """Returns what is wrong with the files of the distributions: missing ones and unexpected ones."""
    files = sources()
    installed = {name.partition("/")[2] for name in files}  # a source root is one folder: "client/"
    beside = {"PKG-INFO", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", ".gitignore"}
    problems = _differences("wheel", wheel_files(built.wheel), installed)
    problems += _differences("sdist", sdist_files(built.sdist), files | beside)
    for package in PACKAGES:
        marker = f"{Path(package).name}/py.typed"
        if marker not in installed:
            problems.append(f"wheel: lacks {marker}")
    return problems


def metadata_problems(metadata: bytes) -> list[str]:
    """Returns what an index would refuse in the metadata of a distribution, and what is missing for a reader."""
    try:
        parsed = Metadata.from_email(metadata, validate=True)
    except ExceptionGroup as group:
        return [str(error) for error in group.exceptions]
    problems = [f"unknown classifier: {name}" for name in parsed.classifiers or [] if name not in KNOWN_CLASSIFIERS]
    if parsed.description_content_type != "text/markdown" or not parsed.description:
        problems.append("expected README.md as the description, in text/markdown")
    if parsed.license_expression != PYPROJECT["project"]["license"] or parsed.license_files != ["LICENSE"]:
        problems.append(f"expected the licence {PYPROJECT['project']['license']} with its file")
    extras = set(PYPROJECT["project"]["optional-dependencies"])
    if set(parsed.provides_extra or []) != extras:
        problems.append(f"expected the extras {sorted(extras)}, got {parsed.provides_extra}")
    return problems


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the wheel and one extra."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def install(self, *requirements: str) -> None:
        """Installs requirements with the versions that the project is tested with."""
        pip = [str(self.bin / "python"), "-m", "pip", "install", "--quiet", "--no-compile"]
        subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), *requirements], check=True)

    def run(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a program of the environment, outside the checkout unless `cwd` names a folder."""
        return subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=cwd or self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def output(self, *command: str, cwd: Path | None = None) -> str:
        """Runs a program, which must succeed, and returns what it prints."""
        done = self.run(*command, cwd=cwd)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} exits with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables without the caller's Python and zrelay settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ZRELAY_", "PYTHON"))}
        own = {"ZRELAY_STATE": str(self.folder / "state"), "ZRELAY_CONFIG": str(self.folder / "no-config.toml")}
        return kept | own


def check_environment(name: str, wheel: Path, version: str, folder: Path) -> None:
    """Installs the wheel with one extra into a new environment and starts what the extra is for.

    Raises:
        SystemExit: A command fails, or its answer is wrong.
    """
    venv.create(folder, with_pip=True)
    environment = Environment(folder)
    environment.install(str(wheel) if name == "base" else f"{wheel}[{name}]")
    environment.output("python", "-m", "pip", "check")
    _expect(environment.output("zrelay", "--version").split()[-1], version, "zrelay --version")
    _expect("generate" in environment.output("zrelay", "--help"), True, "zrelay --help lists generate")
    for role in ENVIRONMENTS["all"]:
        if role in ENVIRONMENTS[name]:
            check_service(environment, role, version)
        elif name == "base":
            refused = environment.run("zrelay", "serve", role, "--model", "none")
            _expect(f"pip install 'zrelay[{role}]'" in refused.stderr, True, f"serve {role} names its extra")
    if name == "base":
        environment.install(*TEST_TOOLS)
        environment.output("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"@{CLIENT_TESTS}", cwd=ROOT)
    if name == "analysis":
        environment.output("python", "-c", "import zrelay_client.calibration, zrelay_client.analysis")
    if name == "all":
        environment.output("zrelay", "demo", "--output", "demo.png")


def check_service(environment: Environment, role: str, version: str) -> None:
    """Starts a service on the demo checkpoint, waits for its health, reads its GetInfo and ends it with SIGTERM."""
    find = "import zrelay_demo; print(zrelay_demo.VISION_CHECKPOINT if {} else zrelay_demo.CHECKPOINT)"
    model = environment.output("python", "-c", find.format(role == "vision")).strip()
    address = environment.folder / f"{role}.address"
    command = [str(environment.bin / "zrelay"), "serve", role, "--model", model]
    command += ["--listen", "127.0.0.1:0", "--address-file", str(address)]
    with (environment.folder / f"{role}.log").open("w+") as log:
        process = subprocess.Popen(command, cwd=environment.folder, env=environment.variables, stdout=log, stderr=log)
        try:
            endpoint = _serving(environment, process, address, Path(log.name))
            info = json.loads(environment.output("zrelay", "info", f"--{role}", endpoint, "--json"))
            _expect(info[role]["version"], version, f"the version in GetInfo of the {role}")
            process.send_signal(signal.SIGTERM)
            _expect(process.wait(60), 0, f"the exit code of the {role} after SIGTERM")
        finally:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--environments", default=",".join(ENVIRONMENTS), help="comma-separated; default: %(default)s")
    parser.add_argument("--allow-changes", action="store_true", help="check a work tree with uncommitted changes")
    arguments = parser.parse_args()
    names: list[str] = [name for name in arguments.environments.split(",") if name]
    if unknown := set(names) - set(ENVIRONMENTS):
        sys.exit(f"--environments: expected some of {', '.join(ENVIRONMENTS)}, got {', '.join(sorted(unknown))}")
    if not arguments.allow_changes and (changes := _changes()):
        sys.exit(f"the work tree has changes that no commit contains (--allow-changes ignores them):\n{changes}")
    with tempfile.TemporaryDirectory(prefix="zrelay-release-") as folder:
        _check(Path(folder), names)


def _check(folder: Path, names: Sequence[str]) -> None:
    started = time.monotonic()

    def step(text: str) -> None:
        print(f"== {text} ({time.monotonic() - started:.0f}s)", flush=True)

    step("sdist and wheel")
    built = build(folder)
    metadata = wheel_metadata(built.wheel)
    problems = file_problems(built) + metadata_problems(metadata) + metadata_problems(sdist_metadata(built.sdist))
    if problems:
        sys.exit("\n".join(problems))
    for path in (built.sdist, built.wheel):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    version = str(Metadata.from_email(metadata).version)
    for name in names:
        step(f"environment: {name}")
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as environment:
            check_environment(name, built.wheel, version, Path(environment))
    step(f"zrelay {version} is ready to be released" if names == list(ENVIRONMENTS) else "the chosen checks passed")


def _hatchling(target: str, folder: Path, source: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the {target} cannot be built:\n{done.stdout}{done.stderr}")


def _changes() -> str:
    command = ["git", "status", "--porcelain"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _differences(what: str, got: set[str], expected: set[str]) -> list[str]:
    return [f"{what}: lacks {name}" for name in sorted(expected - got)] + [
        f"{what}: contains {name}, which it should not" for name in sorted(got - expected)
    ]


def _expect(got: object, expected: object, what: str) -> None:
    if got != expected:
        raise SystemExit(f"{what}: expected {expected!r}, got {got!r}")


def _serving(environment: Environment, process: subprocess.Popen[bytes], address: Path, log: Path) -> str:
    ends = time.monotonic() + START_S
    while time.monotonic() < ends and process.poll() is None:
        if address.exists():
            endpoint = address.read_text()
            if environment.run("python", "-m", "zrelay_shared.healthcheck", endpoint).returncode == 0:
                return endpoint
        time.sleep(0.2)
    raise SystemExit(f"the service did not start:\n{log.read_text()}")


if __name__ == "__main__":
    main()
