"""The encoders of one client.

The first encoder decides which embeddings are wanted. Encoders with the same fingerprint share its work. If none of
them answers, an encoder that differs in dtype or backend alone (equal to rounding) is used, with a notice; any other
encoder is refused. While the fingerprint of the first encoder is unknown, that of the next one that answers counts,
with a notice.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence

from zrelay.v1 import encoder_pb2 as pb
from zrelay_client._pool.policy import FailureKind, failure_kind
from zrelay_client._transport.deadline import CONNECT_S, Budget
from zrelay_client._transport.endpoint import Endpoint
from zrelay_client._transport.stub import ServiceStub
from zrelay_client._wire.option_names import encode_names, option_names
from zrelay_client._wire.replies import embeds_from_reply, encoder_info
from zrelay_client._wire.requests import encode_request
from zrelay_client.embeds import Embeds
from zrelay_client.events import Notice
from zrelay_client.info import EncoderInfo
from zrelay_client.options import EncodeOptions
from zrelay_shared import fingerprint
from zrelay_shared.errors import FailedPrecondition, InternalError, ZrelayError
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.wire import Parcel

_GONE = (FailureKind.LOST, FailureKind.GOING, FailureKind.BUSY)
_REACH_S = 3.0
"""One of several encoders that has not answered within this time counts as away."""
_AWAY_S = 5.0
_FRESH_S = 30.0
_MODEL_FIELDS = (
    "family",
    "width",
    "weights_digest",
    "configuration_digest",
    "tokenizer_digest",
    "quantization",
    "compute_dtype",
    "backend",
)
"""Fields of a fingerprint that no option of a request changes."""


class EncoderService(ServiceStub):
    """The rpcs of an encoder."""

    role = "encoder"
    descriptor = pb.DESCRIPTOR.services_by_name["EncoderService"]

    async def info(self, timeout: float = CONNECT_S) -> EncoderInfo:
        """Returns what the service reports of itself."""
        request = pb.EncoderServiceGetInfoRequest()
        reply = await self.quick_call("GetInfo", request, pb.EncoderServiceGetInfoResponse, timeout)
        return encoder_info(self.endpoint, reply.message)

    async def encode(self, request: pb.EncodePromptsRequest, timeout: float) -> Parcel[pb.EncodePromptsResponse]:
        """Encodes the prompts of a request in one call.

        If the last prompt may be empty (`allow_empty`), it is the negative prompt, and refusals of it name that option.
        """
        negative = bool(request.prompts) and request.prompts[-1].allow_empty
        with option_names(encode_names(len(request.prompts) - negative, negative=negative)):
            return await self.stub.call("EncodePrompts", request, pb.EncodePromptsResponse, timeout=timeout)


class Encoders:
    """All encoders of one client. Create it inside the event loop that uses it."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._all = [EncoderService(endpoint) for endpoint in endpoints]
        self._fingerprints: dict[str, EncoderFingerprint] = {}
        self._in_flight = {service.endpoint: 0 for service in self._all}
        self._away_until = {service.endpoint: 0.0 for service in self._all}
        self._checked_at = 0.0
        self._reference: EncoderFingerprint | None = None
        self._notices: list[Notice] = []

    def __iter__(self) -> Iterator[EncoderService]:
        return iter(self._all)

    @property
    def first(self) -> EncoderService:
        """The encoder whose embeddings are wanted."""
        return self._all[0]

    def take_notices(self) -> list[Notice]:
        """Returns the notices about the choice of the encoder since the last call."""
        taken, self._notices = self._notices, []
        return taken

    async def connect(self, budget: Budget) -> None:
        """Calls GetInfo of all encoders to learn which are there and what they make.

        Raises:
            ZrelayError: No encoder answers; the error is that of the first.
        """
        timeout = budget.left("encoder")
        if len(self._all) == 1:
            await self.first.info(timeout)
            return
        now = time.monotonic()
        if self._fingerprints and now - self._checked_at < _FRESH_S:
            return
        calls = (_info(service, min(timeout, _REACH_S)) for service in self._all)
        answers, self._checked_at = await asyncio.gather(*calls), now
        for service, answer in zip(self._all, answers, strict=True):
            if isinstance(answer, ZrelayError):
                self._away_until[service.endpoint] = now + _AWAY_S
            elif answer.fingerprint is not None:
                self._fingerprints[service.endpoint] = answer.fingerprint
        if all(isinstance(answer, ZrelayError) for answer in answers) and isinstance(answers[0], ZrelayError):
            raise answers[0]

    async def encode(
        self,
        prompts: Sequence[str],
        negative_prompt: str | None,
        options: EncodeOptions,
        text_limit: int | None,
        budget: Budget,
    ) -> list[Embeds]:
        """Encodes prompts that share a negative prompt in one call: all of them or none.

        Args:
            prompts: The prompts.
            negative_prompt: The negative prompt, None for none.
            options: The options of all of them.
            text_limit: The generator's limit in tokens, used if the options have none.
            budget: The deadline.

        Raises:
            FailedPrecondition: ENCODERS_DIFFER, only encoders that make other embeddings answer.
            ZrelayError: The encoder refuses, or no encoder answers.
        """
        request = encode_request(prompts, negative_prompt, options, text_limit)
        started = budget.spent
        reply = await self._call(request, budget)
        if len(reply.message.results) != len(request.prompts):
            raise InternalError(
                f"expected {len(request.prompts)} results from the encoder, got {len(reply.message.results)}"
            )
        negative = None if negative_prompt is None else (len(prompts), negative_prompt)
        took = budget.spent - started
        return [embeds_from_reply(reply, (index, text), negative, took) for index, text in enumerate(prompts)]

    async def close(self) -> None:
        """Closes the connections."""
        await asyncio.gather(*(service.close() for service in self._all))

    async def _call(self, request: pb.EncodePromptsRequest, budget: Budget) -> Parcel[pb.EncodePromptsResponse]:
        """Calls the first encoder, or one that makes the same embeddings. Raises the last refusal."""
        if len(self._all) == 1:
            return await self.first.encode(request, budget.left("encoder"))
        await self.connect(budget)
        tried: set[str] = set()
        restarted: set[str] = set()
        refusal: ZrelayError | None = None
        while True:
            service = self._choose(tried, refusal)
            self._in_flight[service.endpoint] += 1
            try:
                reply = await service.encode(request, budget.left("encoder"))
                if service.endpoint in restarted or self._has_same_model(service, reply):
                    return reply
                # It was restarted with another model: read all fingerprints again, and encode once more.
                restarted.add(service.endpoint)
                self._checked_at = 0.0
                await self.connect(budget)
            except ZrelayError as error:
                if failure_kind(error) not in _GONE:
                    raise
                refusal = error
                tried.add(service.endpoint)
                self._away_until[service.endpoint] = time.monotonic() + _AWAY_S
            finally:
                self._in_flight[service.endpoint] -= 1

    def _choose(self, tried: set[str], refusal: ZrelayError | None) -> EncoderService:
        """Returns the encoder with the fewest calls in flight among those with the wanted fingerprint, else one that is
        equal to rounding. Raises FailedPrecondition (ENCODERS_DIFFER) if only others are left, else `refusal`."""
        reference, now = self._wanted(), time.monotonic()
        known = [service for service in self._all if service.endpoint in self._fingerprints]
        left = [service for service in known or [self.first] if service.endpoint not in tried]
        near = [service for service in left if self._away_until[service.endpoint] <= now] or left
        if not near and refusal is not None:
            raise refusal
        relations = {service: _relation(reference, self._fingerprints.get(service.endpoint)) for service in near}
        same = [service for service, relation in relations.items() if relation == fingerprint.EXACT]
        if same:
            return min(same, key=lambda service: self._in_flight[service.endpoint])
        other = next((s for s, relation in relations.items() if relation == fingerprint.EQUIVALENT), None)
        if other is None:
            raise self._differs(near[0], reference)
        self._notify(f"{other.endpoint} encodes in place of the first encoder; the embeddings are equal to rounding")
        return other

    def _has_same_model(self, service: EncoderService, reply: Parcel[pb.EncodePromptsResponse]) -> bool:
        """Returns whether a reply comes from the model that the encoder reported."""
        reported = self._fingerprints.get(service.endpoint)
        if reported is None or not reply.message.results:
            return True
        made_by = fingerprint.from_message(reply.message.results[0].prompt_embeds.fingerprint)
        return all(getattr(made_by, name) == getattr(reported, name) for name in _MODEL_FIELDS)

    def _wanted(self) -> EncoderFingerprint | None:
        """Returns the fingerprint that is wanted: that of the first encoder as soon as it is known."""
        first = self._fingerprints.get(self.first.endpoint)
        if first is None and self._reference is None and self._fingerprints:
            endpoint, self._reference = next(iter(self._fingerprints.items()))
            self._notify(
                f"the fingerprint of {self.first.endpoint} is unknown; {endpoint} encodes, perhaps other embeddings"
            )
        return first or self._reference

    def _differs(self, other: EncoderService, reference: EncoderFingerprint | None) -> FailedPrecondition:
        wanted, got = (made.digest if made else "" for made in (reference, self._fingerprints.get(other.endpoint)))
        return FailedPrecondition(
            f"{self.first.endpoint} does not answer, and {other.endpoint} makes other embeddings (fingerprint "
            f"{got[:12]}, not {wanted[:12]}): start the first again, or name the other alone (--encoder "
            f"{other.endpoint}), for another picture",
            reason="ENCODERS_DIFFER",
            field="encoder",
            metadata={"expected": wanted, "got": got},
        )

    def _notify(self, message: str) -> None:
        notice = Notice("encoder", message)
        if notice not in self._notices:
            self._notices.append(notice)


def _relation(reference: EncoderFingerprint | None, made_by: EncoderFingerprint | None) -> str:
    """Returns how embeddings of one encoder relate to those of the wanted one."""
    if reference is None or made_by is None or reference.digest == made_by.digest:
        return fingerprint.EXACT
    try:
        return fingerprint.compare(*fingerprint.comparable(reference, made_by)).relation
    except ZrelayError:
        return fingerprint.REFUSED


async def _info(service: EncoderService, timeout: float) -> EncoderInfo | ZrelayError:
    try:
        return await service.info(timeout)
    except ZrelayError as error:
        return error
