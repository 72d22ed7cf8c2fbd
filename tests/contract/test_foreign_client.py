"""Clients that know only the .proto files: generated stubs, and `buf curl` by reflection, against a Parcel server."""

import asyncio
import base64
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo

from zrelay.v1 import encoder_pb2, generator_pb2, generator_pb2_grpc
from zrelay.v1.tensor_pb2 import Tensor
from zrelay_shared import rpc, serving, tensors
from zrelay_shared.errors import FeatureMissing
from zrelay_shared.listening import parse_listen
from zrelay_shared.wire import Parcel

GENERATOR = generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"]
ENCODER = encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"]
DATA = bytes(range(12))


async def test_generated_stubs_talk_to_a_parcel_server():
    got = {}

    async def Generate(parcel, context):
        tensor = parcel.message.spec.prompt.prompt_embeds.segments[0].prompt_embeds
        view = tensors.check(tensor, parcel.bytes_of(tensor), field="prompt", rank=2)
        got["generate"] = bytes(view.data)
        yield generator_pb2.GenerateResponse(event={"image": {"data": bytes(view.data)}})

    async def UploadBlob(parcels, context):
        got["upload"] = b"".join([parcel.message.data async for parcel in parcels])
        return generator_pb2.UploadBlobResponse(existed=True)

    async def refuse(parcel, context):
        raise FeatureMissing("not here", metadata={"feature": "jobs.submit"})

    handlers = {method.name: refuse for method in GENERATOR.methods} | {"Generate": Generate, "UploadBlob": UploadBlob}
    server = grpc.aio.server()
    rpc.add_service(server, GENERATOR, SimpleNamespace(**handlers))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = generator_pb2_grpc.GeneratorServiceStub(channel)
        request = generator_pb2.GenerateRequest()
        segment = request.spec.prompt.prompt_embeds.segments.add()
        segment.prompt_embeds.CopyFrom(Tensor(dtype=1, shape=[2, 3], crc32c=tensors.crc32c(DATA), data=DATA))
        assert [event.event.image.data async for event in stub.Generate(request)] == [DATA]
        chunks = [generator_pb2.UploadBlobRequest(data=b"ab"), generator_pb2.UploadBlobRequest(data=b"cd")]
        assert (await stub.UploadBlob(iter(chunks))).existed
        with pytest.raises(grpc.RpcError) as refusal:
            await stub.SubmitJob(generator_pb2.SubmitJobRequest())
    await server.stop(None)
    assert got == {"generate": DATA, "upload": b"abcd"}
    assert refusal.value.code() == grpc.StatusCode.UNIMPLEMENTED and refusal.value.details() == "not here"


class Encoder:
    """An encoder of three made-up numbers."""

    descriptor = ENCODER

    async def load(self): ...

    async def drain(self, grace_s): ...

    async def close(self): ...

    async def GetInfo(self, parcel, context):
        return encoder_pb2.EncoderServiceGetInfoResponse(ready=True, max_prompts=4)

    async def FormatPrompt(self, parcel, context):
        raise FeatureMissing("formatting is not here", metadata={"feature": "x"})

    async def EncodePrompts(self, parcel, context):
        reply = Parcel(encoder_pb2.EncodePromptsResponse())
        for _ in parcel.message.prompts:
            tensor = reply.message.results.add().prompt_embeds.segments.add().prompt_embeds
            tensor.CopyFrom(tensors.header("BF16", (2, 3), DATA))
            reply.attach(tensor, DATA)
        return reply


async def test_buf_curl_by_reflection():
    buf = next(filter(None, (shutil.which("buf", path=str(Path(sys.executable).parent)), shutil.which("buf"))), None)
    if buf is None:
        pytest.skip("buf is not installed: pip install buf-bin")

    async def curl(method: str, body: str) -> tuple[int, str, str]:
        url = f"http://{server.address}/zrelay.v1.EncoderService/{method}"
        arguments = ["curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", body, url]
        process = await asyncio.create_subprocess_exec(
            buf, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode or 0, out.decode(), err.decode()

    async with serving.running(Encoder(), serving.ServeOptions(parse_listen("127.0.0.1:0"))) as server:
        await server.loaded
        code, out, err = await curl("GetInfo", "{}")
        assert code == 0, err
        assert json.loads(out) == {"ready": True, "maxPrompts": 4}
        code, out, err = await curl("EncodePrompts", '{"prompts": [{"text": "a red fox"}, {"text": "two"}]}')
        assert code == 0, err
        results = json.loads(out)["results"]
        expected = {"dtype": "TENSOR_DTYPE_BF16", "shape": ["2", "3"], "data": "AAECAwQFBgcICQoL"}
        tensor = results[1]["promptEmbeds"]["segments"][0]["promptEmbeds"]
        assert len(results) == 2 and {key: tensor[key] for key in expected} == expected
        code, out, err = await curl("FormatPrompt", "{}")
        refusal = json.loads(err)
        assert code and refusal["code"] == "unimplemented" and refusal["message"] == "formatting is not here"
        [detail] = refusal["details"]
        value = base64.b64decode(detail["value"] + "==")
        assert detail["type"] == "google.rpc.ErrorInfo" and ErrorInfo.FromString(value).reason == "FEATURE_MISSING"
