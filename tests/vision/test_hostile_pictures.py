"""Pictures that are made to cost a vision service much."""

import platform
from pathlib import Path

import pytest

from tests.helpers.hostile_pictures import jpeg_of_scans
from tests.helpers.polling import eventually
from tests.helpers.refusals import refused_async
from tests.vision.helpers import VisionClient
from zrelay.v1.content_pb2 import ImageInput
from zrelay.v1.vision_pb2 import VISION_ENGINE_QWEN3_VL, EncodeImagesRequest
from zrelay_shared.errors import InvalidArgument

pytestmark = pytest.mark.hostile


def request(*files: bytes) -> EncodeImagesRequest:
    """Returns a request for the states of image files."""
    return EncodeImagesRequest(images=[ImageInput(data=file) for file in files], engine=VISION_ENGINE_QWEN3_VL)


async def test_a_picture_that_takes_hours_to_decode_is_refused_at_once(qwen: VisionClient) -> None:
    hostile = request(jpeg_of_scans(5760, 200_000))
    await refused_async(qwen.encode(hostile), InvalidArgument, reason="IMAGE_UNREADABLE", match="scans")


@pytest.mark.deep
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators decide themselves")
async def test_the_memory_of_large_pictures_is_given_back(qwen: VisionClient) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

    await qwen.encode(request(jpeg_of_scans(64, 2)))
    before = resident()
    await qwen.encode(request(*[jpeg_of_scans(5760, scans) for scans in (3, 4, 5)]))
    await eventually(lambda: resident() < before + 60, "the memory is given back")
