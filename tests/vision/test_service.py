"""The vision service over a real channel: it says what it is, and refuses what it does not do yet."""

import pytest
from click.testing import CliRunner

from zrelay.v1 import vision_pb2 as pb
from zrelay_shared import channels, rpc, serving
from zrelay_shared.errors import FeatureMissing
from zrelay_shared.listening import parse_listen
from zrelay_vision.__main__ import main
from zrelay_vision.service import VisionService

REFUSED = {
    "EncodeImages": (pb.EncodeImagesRequest, pb.EncodeImagesResponse, "vision.encode"),
    "ConditionPrompt": (pb.ConditionPromptRequest, pb.ConditionPromptResponse, "vision.condition"),
    "ScoreImages": (pb.ScoreImagesRequest, pb.ScoreImagesResponse, "vision.score"),
}


async def test_get_info_and_refusals_agree() -> None:
    service = VisionService()
    options = serving.ServeOptions(parse_listen("127.0.0.1:0"))
    async with serving.running(service, options) as server, channels.dial(str(server.address)) as channel:
        stub = rpc.Stub(channel, service.descriptor)
        info = await stub.call("GetInfo", pb.VisionServiceGetInfoRequest(), pb.VisionServiceGetInfoResponse, timeout=20)
        assert (info.message.version.service, info.message.ready) == ("vision", False)
        assert not any(feature.available for feature in info.message.features)
        for method, (request, response, feature) in REFUSED.items():
            with pytest.raises(FeatureMissing) as refused:
                await stub.call(method, request(), response, timeout=20)
            assert refused.value.metadata == {"feature": feature}
        assert {feature.name for feature in info.message.features} == {name for *_, name in REFUSED.values()}


@pytest.mark.parametrize(("flag", "value"), [("--device", "warp"), ("--dtype", "int3"), ("--grace-s", "-1")])
def test_flags_that_cannot_be_are_refused(flag: str, value: str) -> None:
    ended = CliRunner().invoke(main, ["--listen", "127.0.0.1:0", flag, value])
    assert ended.exit_code == 2 and value in ended.output
