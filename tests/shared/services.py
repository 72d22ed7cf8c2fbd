"""A service without a model, to test the lifecycle of services."""

import asyncio
from typing import Any, NoReturn

from zrelay.v1 import vision_pb2
from zrelay_shared import rpc
from zrelay_shared.errors import FeatureMissing, ModelLoading
from zrelay_shared.service import lifecycle
from zrelay_shared.wire import Parcel

VISION = vision_pb2.DESCRIPTOR.services_by_name["VisionService"]
NAME = VISION.full_name


class ControlledService(lifecycle.Service):
    """A vision service without a model, which loads and drains when a test permits it.

    Attributes:
        load_now: Permits loading.
        drain_now: Permits the end of draining.
        draining: Whether draining began.
        closed: Whether the service was closed.
        unhealthy: Why it cannot serve, "" if it can.
        restart: Why the process must be restarted, "" if it need not be.
    """

    descriptor = VISION

    def __init__(self) -> None:
        self.load_now, self.drain_now = asyncio.Event(), asyncio.Event()
        self.draining = self.closed = False
        self.unhealthy = self.restart = ""

    @property
    def unhealthy_reason(self) -> str:
        return self.unhealthy

    @property
    def restart_reason(self) -> str:
        return self.restart

    async def load(self) -> None:
        await self.load_now.wait()

    async def drain(self, grace_s: float) -> None:
        self.draining = True
        await self.drain_now.wait()

    async def close(self) -> None:
        self.closed = True

    async def GetInfo(self, parcel: Parcel[Any], context: rpc.Context) -> vision_pb2.VisionServiceGetInfoResponse:
        if not self.load_now.is_set():
            raise ModelLoading("the model is still being loaded")
        return vision_pb2.VisionServiceGetInfoResponse(ready=True)

    async def _refuse(self, parcel: Parcel[Any], context: rpc.Context) -> NoReturn:
        raise FeatureMissing("not here")

    EncodeImages = ConditionPrompt = ScoreImages = _refuse
