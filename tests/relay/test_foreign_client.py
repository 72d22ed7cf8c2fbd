"""Clients that nobody here wrote: `buf curl` by reflection, and plain protobuf stubs, against the running services."""

import base64
import hashlib
import json
import subprocess
from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo

from tests.helpers.jobs import PROMPT
from tests.helpers.processes import Machine
from tests.helpers.tools import find_tool
from zrelay.v1 import encoder_pb2, encoder_pb2_grpc, generator_pb2, generator_pb2_grpc


def curl(address: str, method: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Calls by reflection; (exit code, reply or refusal)."""
    buf = find_tool("buf", "pip install buf-bin")
    url = f"http://{address}/zrelay.v1.EncoderService/{method}"
    arguments = ["curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", json.dumps(body), url]
    ran = subprocess.run([buf, *arguments], capture_output=True, text=True, timeout=60, check=False)
    return ran.returncode, json.loads(ran.stdout or ran.stderr)


def test_buf_curl_by_reflection(here: Machine) -> None:
    address = here.endpoints()["encoder"]
    code, info = curl(address, "GetInfo", {})
    assert code == 0 and info["ready"] and info["fingerprint"]["family"] == "qwen3"
    code, reply = curl(address, "EncodePrompts", {"prompts": [{"text": PROMPT}, {"text": "two white moons"}]})
    assert code == 0 and len(reply["results"]) == 2
    first = reply["results"][0]["promptEmbeds"]
    tensor = first["segments"][0]["promptEmbeds"]
    rows, width = map(int, tensor["shape"])
    assert (rows, width) == (first["report"]["tokenCount"], info["fingerprint"]["width"])
    assert len(base64.b64decode(tensor["data"])) == rows * width * 2
    assert first["fingerprint"]["digest"] == info["fingerprint"]["digest"]


def test_buf_curl_receives_the_reason(here: Machine) -> None:
    code, refusal = curl(here.endpoints()["encoder"], "EncodePrompts", {"prompts": [{"text": ""}]})
    assert code != 0 and refusal["code"] == "invalid_argument"
    details = {detail["type"]: base64.b64decode(detail["value"] + "==") for detail in refusal["details"]}
    assert ErrorInfo.FromString(details["google.rpc.ErrorInfo"]).reason == "PROMPT_EMPTY"


def test_plain_protobuf_paints_the_same_picture(here: Machine) -> None:
    ours = here.json("generate", PROMPT, "-o", "ours.png", "--seed", "3")
    with (
        grpc.insecure_channel(here.endpoints()["encoder"]) as encoder,
        grpc.insecure_channel(here.endpoints()["generator"]) as generator,
    ):
        prompts = [encoder_pb2.Prompt(text=PROMPT)]
        encoder_stub: Any = encoder_pb2_grpc.EncoderServiceStub(encoder)  # type: ignore[no-untyped-call]
        generator_stub: Any = generator_pb2_grpc.GeneratorServiceStub(generator)  # type: ignore[no-untyped-call]
        encoded = encoder_stub.EncodePrompts(encoder_pb2.EncodePromptsRequest(prompts=prompts))
        request = generator_pb2.GenerateRequest()
        request.spec.prompt.prompt_embeds.CopyFrom(encoded.results[0].prompt_embeds)
        request.spec.sampling.seed = 3
        events = [reply.event for reply in generator_stub.Generate(request)]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "accepted" and kinds[-2:] == ["image", "done"]
    assert [event.sequence for event in events] == sorted({event.sequence for event in events})
    image = events[-2].image
    assert image.pixels_sha256 == ours["files"][0]["pixels_sha256"]
    assert image.file_sha256 == hashlib.sha256(image.data).hexdigest()
