"""What a caller sends does not hold the event loop of a service: other calls are answered meanwhile."""

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers.servers import serve
from zrelay_demo import CHECKPOINT, VISION_CHECKPOINT
from zrelay_encoder.api.servicer import EncoderServicer
from zrelay_encoder.config import EncoderConfig
from zrelay_generator.service import GeneratorServicer
from zrelay_shared.service.lifecycle import Service
from zrelay_shared.service.roles import GeneratorConfig
from zrelay_vision.api.servicer import VisionServicer
from zrelay_vision.config import VisionConfig

SERVICES: dict[str, Callable[[], Service]] = {
    "EncoderService": lambda: EncoderServicer(EncoderConfig(model=CHECKPOINT, device="cpu")),
    "VisionService": lambda: VisionServicer(VisionConfig(siglip=VISION_CHECKPOINT / "siglip", device="cpu")),
    "GeneratorService": lambda: GeneratorServicer(GeneratorConfig(model=CHECKPOINT, device="cpu", state=None)),
}
MOST_S = 0.5
"""Ten times the 50 ms that no message may take. gRPC alone takes 3 ms for each MiB of a message that it receives."""
SIZE = 16 << 20


class LagSampler:
    """Measures the longest time for which the running event loop did nothing else than one callback."""

    def __init__(self) -> None:
        self.worst_s = 0.0

    async def run(self) -> None:
        """Samples until it is cancelled."""
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.002)
            now = time.perf_counter()
            self.worst_s, last = max(self.worst_s, now - last), now


@pytest.mark.deep  # starts a service and a process
@pytest.mark.parametrize("service", SERVICES)
async def test_hostile_messages_do_not_hold_the_event_loop(service: str) -> None:
    async with serve(SERVICES[service]()) as served:
        sampler = LagSampler()
        sampling = asyncio.create_task(sampler.run())
        command = (sys.executable, "-m", "tests.helpers.hostile_messages", served.endpoint, service, str(SIZE))
        sender = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert sender.stdout is not None
        found: dict[str, Any] = {}
        async for line in sender.stdout:
            name, code, _ = line.decode().split("|", 2)
            found[name], sampler.worst_s = (code, sampler.worst_s), 0.0
        sampling.cancel()
        assert await sender.wait() == 0 and found
    print(
        f"\n{service}:", *(f"{name}: {code}, {lag_s * 1e3:.0f} ms" for name, (code, lag_s) in found.items()), sep="\n"
    )
    assert {code for code, _ in found.values()} <= {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "OK"}
    assert max(lag_s for _, lag_s in found.values()) < MOST_S
