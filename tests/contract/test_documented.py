"""The pages about protocol, identity and errors agree with the code: relations, features, limits, examples."""

import ast
import hashlib
import importlib
import re
from pathlib import Path

import pytest

from zrelay_shared import errors, limits, status, tensors
from zrelay_shared.fingerprint import RELATION_OF_DIFFERENCE, EncoderFingerprint

ROOT = Path(__file__).parents[2]
PAGES = ("reference/protocol.md", "reference/errors.md", "reference/files.md", "explanation/identity.md")
TEXT = "\n".join((ROOT / "docs" / page).read_text() for page in PAGES)
SOURCES = ("shared", "encoder_service", "vision_service", "generator_service")
SERVICES = {"EncoderService": "encoder", "VisionService": "vision", "GeneratorService": "generator"}


def table(*header: str) -> list[list[str]]:
    """The rows of the table with that header."""
    lines = iter(TEXT.splitlines())
    wanted = "| " + " | ".join(header) + " |"
    assert any(line == wanted for line in lines), f"no table {wanted}"
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def literals(pattern: str) -> dict[str, str]:
    """String literals of shipped code that match, and where one of each stands."""
    found = {}
    for folder in SOURCES:
        for path in (ROOT / folder).rglob("*.py"):
            if "_pb2" not in path.name:
                for node in ast.walk(ast.parse(path.read_text())):
                    if (
                        isinstance(node, ast.Constant)
                        and isinstance(node.value, str)
                        and re.fullmatch(pattern, node.value)
                    ):
                        found[node.value] = path.name
    return found


def reasons(folder: Path) -> dict[str, str]:
    """Literals that are passed as `reason=`, and the file of one of each."""
    return {
        str(node.value.value): path.name
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg == "reason" and isinstance(node.value, ast.Constant)
    }


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    tree = re.findall(r"[├└]── (\w+) +([A-Z_]+)", errors.__doc__ or "")
    kinds = {kind.__name__: kind for kind in status.CLASSES}
    assert sorted(name for name, _ in tree) == sorted(kinds)
    for name, word in tree:
        assert word in (kinds[name].code, kinds[name].default_reason)


def test_every_reason_is_upper_snake() -> None:
    for folder in SOURCES:
        for reason, file in reasons(ROOT / folder).items():
            assert re.fullmatch(r"[A-Z][A-Z0-9_]+", reason), f"{file}: {reason}"


def test_the_relation_table() -> None:
    rows = table("field", "a difference is")
    assert [(row[0].strip("`"), row[1]) for row in rows] == list(RELATION_OF_DIFFERENCE.items())


def test_the_worked_example_of_the_digest() -> None:
    canonical = next(line.strip() for line in TEXT.splitlines() if line.startswith('    {"backend"'))
    example = EncoderFingerprint(
        family="qwen3",
        width=2560,
        compute_dtype="bfloat16",
        backend="torch-cpu",
        layer_weights=((-2, 0.3), (-3, 0.7)),
        model_id="not part of it",
    )
    assert example.canonical.decode() == canonical
    assert example.digest == hashlib.sha256(canonical.encode()).hexdigest()
    assert f"    {example.digest}\n" in TEXT


def test_the_golden_tensor() -> None:
    from zrelay.v1.embeds_pb2 import PromptSegment

    written = next(line for line in TEXT.splitlines() if re.fullmatch(r"    ([0-9a-f]{2} )+[0-9a-f]{2}", line))
    tensor = PromptSegment.FromString(bytes.fromhex(written)).prompt_embeds
    view = tensors.check(tensor, memoryview(tensor.data), field="x", rank=2)
    assert (view.dtype, view.shape, view.data.hex()) == ("BF16", (2, 3), "803f00c0003f0000404080be")
    assert f"`{tensors.crc32c(b'123456789'):08x}`" in TEXT


def test_the_features_that_code_names_are_listed() -> None:
    listed = set(re.findall(r"`((?:encode|vision|generate|jobs|content|lora)\.[a-z0-9_.]+)`", TEXT))
    named = literals(r"(encode|vision|generate|jobs|content|lora)\.[a-z0-9_]+(\.[a-z_]+)?")
    files = {"jobs.db", "jobs.lock", "jobs.owner"}
    assert set(named) - listed - files == set()


@pytest.mark.parametrize(
    ("limit", "value", "spelt"),
    [
        ("one message, both ends", limits.MAX_MESSAGE_BYTES, f"{limits.MAX_MESSAGE_BYTES >> 20} MiB"),
        ("fields of one message, all levels", limits.MAX_MESSAGE_FIELDS, f"{limits.MAX_MESSAGE_FIELDS:,}"),
        ("one tensor", limits.MAX_TENSOR_BYTES, f"{limits.MAX_TENSOR_BYTES >> 20} MiB"),
        ("rank of a tensor", limits.MAX_TENSOR_RANK, str(limits.MAX_TENSOR_RANK)),
        ("request_id", limits.MAX_REQUEST_ID_CHARS, f"{limits.MAX_REQUEST_ID_CHARS} characters"),
        ("details of a refusal", limits.MAX_DETAILS_BYTES, f"{limits.MAX_DETAILS_BYTES >> 10} KiB"),
        ("prompt, where nobody names a limit", limits.DEFAULT_TEXT_LIMIT, f"{limits.DEFAULT_TEXT_LIMIT:,} tokens"),
        ("references of an Omni prompt", limits.MAX_OMNI_IMAGES, str(limits.MAX_OMNI_IMAGES)),
        (
            "keep-alive pings",
            limits.KEEPALIVE_S,
            f"every {limits.KEEPALIVE_S} s, answered in {limits.KEEPALIVE_TIMEOUT_S} s",
        ),
    ],
)
def test_limits(limit: str, value: int, spelt: str) -> None:
    assert {row[0]: row[1] for row in table("limit", "value", "why")}[limit] == spelt


def test_services_ports_and_rpcs() -> None:
    for name, port, rpcs in table("service", "port", "rpcs"):
        role = SERVICES[name]
        module = importlib.import_module(f"zrelay.v1.{role}_pb2")
        methods = module.DESCRIPTOR.services_by_name[name].methods
        assert [method.name for method in methods] == rpcs.split(", ")
        assert int(port) == limits.DEFAULT_PORTS[role]


def test_health_names() -> None:
    from zrelay_shared.service.lifecycle import LIVENESS

    names = " ".join(row[0] for row in table("name", "SERVING means"))
    assert f"`{LIVENESS}`" in names and all(f"`zrelay.v1.{service}`" in names for service in SERVICES)


def test_the_contract_promises_the_order_in_which_the_code_checks() -> None:
    rows = table("step", "check", "refused with")
    reasons = [re.findall(r"[A-Z_]{6,}", row[2])[0] for row in rows]
    source = (ROOT / "shared/zrelay_shared/tensors.py").read_text()
    at = [source.index(f'refuse("{reason}"') for reason in dict.fromkeys(reasons[:6])]
    assert at == sorted(at)
    assert reasons[6:] == ["CHECKSUM_MISMATCH", "TENSOR_NOT_FINITE"]


def test_links_and_commands_exist() -> None:
    for path in re.findall(r"`((?:shared|proto|docs|tests)/[\w./]+)`", TEXT):
        assert (ROOT / path).exists(), path
    assert "proto:" in (ROOT / "Makefile").read_text()
