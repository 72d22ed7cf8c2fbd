"""The contract itself: lint, the breaking gate (and that it bites), generated code, words."""

import difflib
import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor

from tests.helpers.tools import find_tool

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto"
FILES = sorted(path.stem for path in (PROTO / "zrelay/v1").glob("*.proto"))

BREAKING = {
    "a field is renamed": ("tensor.proto", "bytes data = 4;", "bytes content = 4;"),
    "a field is renumbered": ("tensor.proto", "bytes data = 4;", "bytes data = 5;"),
    "a field is retyped": ("generation.proto", "optional uint64 seed = 9;", "optional int32 seed = 9;"),
    "presence is lost": ("generation.proto", "optional float guidance_scale = 4;", "float guidance_scale = 4;"),
    "an rpc is gone": ("encoder.proto", "rpc FormatPrompt(FormatPromptRequest) returns (FormatPromptResponse);", ""),
    "a value is renamed": ("embeds.proto", "THINK_MODE_EMPTY = 2;", "THINK_MODE_BLANK = 2;"),
    "a unary rpc streams": ("generator.proto", "returns (GetJobResponse)", "returns (stream GetJobResponse)"),
}
UGLY = {
    "a field without a comment": ("tensor.proto", "  // Element type. Required.\n", ""),
    "a response that is shared": ("generator.proto", "returns (GetJobResponse)", "returns (SubmitJobResponse)"),
    "a zero value that means something": ("jobs.proto", "STAGE_KIND_UNSPECIFIED = 0;", "STAGE_KIND_NONE = 0;"),
}


@pytest.fixture(scope="session")
def buf() -> str:
    return find_tool("buf", "pip install buf-bin")


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)


def changed(folder: Path, file: str, old: str, new: str) -> Path:
    """A copy of the contract with one thing changed."""
    shutil.copytree(PROTO, folder / "proto", ignore=shutil.ignore_patterns("*.py*", "__pycache__"))
    path = folder / "proto/zrelay/v1" / file
    text = path.read_text()
    assert text.count(old) == 1, f"{file} has changed: choose another example than {old!r}"
    path.write_text(text.replace(old, new))
    return folder / "proto"


def test_lint_is_clean(buf: str) -> None:
    assert re.findall(r"- ([A-Z]+)", (PROTO / "buf.yaml").read_text()) == ["STANDARD", "COMMENTS", "FILE"]
    result = run(buf, "lint", cwd=PROTO)
    assert result.returncode == 0, result.stdout + result.stderr


def test_nothing_breaks_the_baseline(buf: str) -> None:
    result = run(buf, "breaking", "--against", "baseline.binpb", cwd=PROTO)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("change", BREAKING.values(), ids=BREAKING)
def test_the_gate_catches_a_breaking_change(buf: str, tmp_path: Path, change: tuple[str, str, str]) -> None:
    result = run(buf, "breaking", "--against", "baseline.binpb", cwd=changed(tmp_path, *change))
    assert result.returncode == 100 and change[0] in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize("change", UGLY.values(), ids=UGLY)
def test_lint_catches_what_it_should(buf: str, tmp_path: Path, change: tuple[str, str, str]) -> None:
    result = run(buf, "lint", cwd=changed(tmp_path, *change))
    assert result.returncode == 100 and change[0] in result.stdout, result.stdout + result.stderr


def test_an_addition_is_no_breaking_change(buf: str, tmp_path: Path) -> None:
    more = (
        "tensor.proto",
        "bytes data = 4;",
        "bytes data = 4;\n  // What nobody has thought of yet.\n  string note = 5;",
    )
    copy = changed(tmp_path, *more)
    assert run(buf, "breaking", "--against", "baseline.binpb", cwd=copy).returncode == 0
    assert run(buf, "lint", cwd=copy).returncode == 0


@pytest.mark.deep  # installs the oldest supported tools; `make check` runs it too
def test_generated_code_is_current(tmp_path: Path) -> None:
    result = run("sh", str(PROTO / "generate.sh"), str(tmp_path), cwd=ROOT)
    if result.returncode and re.search(r"No matching distribution|Could not fetch|Connection|Retrying", result.stderr):
        pytest.skip("the pinned grpcio-tools cannot be had: no package index")
    assert result.returncode == 0, result.stderr
    made = {path.name: path.read_text() for path in (tmp_path / "zrelay/v1").iterdir()}
    kept = {path.name: path.read_text() for path in (PROTO / "zrelay/v1").glob("*_pb2*")}
    assert sorted(made) == sorted(kept), "run `make proto` and commit what it writes"
    for name, text in made.items():
        difference = "\n".join(difflib.unified_diff(kept[name].splitlines(), text.splitlines(), "kept", "made", n=1))
        assert not difference, f"{name} is stale, run `make proto`:\n{difference[:2000]}"


@pytest.mark.parametrize("stem", FILES)
def test_generated_code_runs_on_the_installed_protobuf(stem: str) -> None:
    module = importlib.import_module(f"zrelay.v1.{stem}_pb2")
    assert module.DESCRIPTOR.package == "zrelay.v1"
    if module.DESCRIPTOR.services_by_name:
        importlib.import_module(f"zrelay.v1.{stem}_pb2_grpc")


def all_fields() -> list[FieldDescriptor]:
    modules = [importlib.import_module(f"zrelay.v1.{stem}_pb2") for stem in FILES]
    return [
        field
        for module in modules
        for message in module.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
    ]


FORBIDDEN_WORDS = {
    # design.md, section 8: one word per thing
    "cfg_scale": "guidance_scale",
    "cfg": "guidance_scale",
    "dit": "transformer",
    "unet": "transformer",
    "ae": "vae",
    "llm": "text_encoder",
    "steps": "num_inference_steps",
    "cond": "prompt_embeds",
    "context": "prompt_embeds",
    "caption": "prompt",
    "embeddings": "prompt_embeds",
    "vision_features": "siglip_embeds",
    "noise": "latents",
    "samples": "latents",
    "random_state": "seed",
    "url": "endpoint",
    "addr": "endpoint",
    "address": "endpoint",
}


def test_fields_use_the_words_of_the_house() -> None:
    said = {field.full_name: FORBIDDEN_WORDS[field.name] for field in all_fields() if field.name in FORBIDDEN_WORDS}
    assert said == {}
    parts = {part for field in all_fields() for part in field.name.split("_")}
    assert not parts & {"dit", "unet", "llm", "url", "addr", "embedding", "embeddings"}
    names = {field.name for field in all_fields()}
    assert {"guidance_scale", "num_inference_steps", "prompt_embeds", "siglip_embeds", "negative_prompt"} <= names


def test_enums_begin_with_unspecified_and_carry_their_name() -> None:
    for stem in FILES:
        for enum in importlib.import_module(f"zrelay.v1.{stem}_pb2").DESCRIPTOR.enum_types_by_name.values():
            prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper()
            prefix = prefix.replace("QWEN3_", "QWEN3")
            assert enum.values_by_number[0].name == f"{prefix}_UNSPECIFIED"
            assert all(value.name.startswith(f"{prefix}_") for value in enum.values)


def test_a_number_whose_zero_is_a_value_says_whether_it_is_there() -> None:
    zero_matters = {"seed", "guidance_scale", "alpha", "strength", "scale", "cfg_normalization", "cfg_truncation"}
    without = [
        field.full_name
        for field in all_fields()
        if field.name in zero_matters
        and field.full_name.split(".")[-2].endswith(("Options", "Use", "Guidance", "Steering"))
        if not field.has_presence
    ]
    assert without == []
