"""A client in Node that knows the .proto files alone: streams, cancelling, deadlines, 64-bit numbers, refusals."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from PIL import Image

from tests.helpers.jobs import PROMPT
from tests.helpers.node_modules import find_node_client

from .conftest import ROOT, Access, run

pytestmark = [pytest.mark.deep, pytest.mark.timeout(300)]
_OK, _CANCELLED, _DEADLINE_EXCEEDED = 0, 1, 4


def test_the_documented_program(access: Access, tmp_path: Path) -> None:
    node, folder = find_node_client()
    flags = ["--protos", ROOT / "proto", *access.flags]
    ran = run(node, f"{folder}/generate.mjs", *flags, PROMPT, "image.png", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "STAGE_KIND_DENOISE: 8 of 8" in ran.stdout and "seed 18446744073709551615, 128 x 128" in ran.stdout
    with Image.open(tmp_path / "image.png") as image:
        assert image.size == (128, 128)


def test_calls(access: Access) -> None:
    node, folder = find_node_client()
    ran = run(node, f"{folder}/checks.mjs", "--protos", ROOT / "proto", *access.flags)
    assert ran.returncode == 0, ran.stderr
    answers = json.loads(ran.stdout)

    assert {seed: set(seen) for seed, seen in answers["seeds"].items()} == {
        seed: {seed} for seed in ("9007199254740993", "18446744073709551615")
    }
    sequences = [int(sequence) for sequence, _ in answers["whole"]["events"]]
    kinds = [kind for _, kind in answers["whole"]["events"]]
    assert answers["whole"]["code"] == _OK and sequences == sorted(set(sequences))
    assert kinds[0] == "accepted" and kinds[-2:] == ["image", "done"] and set(kinds[1:-2]) == {"progress"}
    assert answers["cancelled"] == {"code": _CANCELLED, "state": "JOB_STATE_CANCELLED"}
    watched = {"code": _DEADLINE_EXCEEDED, "first": "accepted", "state": "JOB_STATE_CANCELLED"}
    assert answers["watched"] == watched, "the deadline ended the call, and CancelJob the job"
    assert reason(answers["empty"]) == "PROMPT_EMPTY"
    assert reason(answers["unknown"]) == "JOB_UNKNOWN"
    assert answers["anonymous"] is None or reason(answers["anonymous"]) == "TOKEN_MISSING"


def reason(refusal: dict[str, Any]) -> str:
    """Returns the reason in the details of a refusal."""
    status = Status.FromString(base64.b64decode(refusal["status"]))
    assert (status.code, status.message) == (refusal["code"], refusal["details"])
    info = ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return str(info.reason)
