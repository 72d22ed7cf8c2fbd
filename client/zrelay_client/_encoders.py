"""The encoders of one client: the first is the one that counts, others stand in where they make the same embeddings.

Those whose fingerprint has the first's digest share its work. Where none of them answers, one that differs in dtype or
backend alone (equal to rounding) is used, and told; any other is refused. While the first never said what it is, the
word of the next that answers is taken, and that is told too.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence

from zrelay_client._budget import Budget
from zrelay_client._events import Notice
from zrelay_client._fleet import FailureKind, failure_kind
from zrelay_client._info import EncoderInfo
from zrelay_client._replies import EncodePromptsReply
from zrelay_client._requests import EncodePrompts
from zrelay_client._services import EncoderService
from zrelay_shared import fingerprint
from zrelay_shared.errors import FailedPrecondition, ZrelayError
from zrelay_shared.fingerprint import EncoderFingerprint

_GONE = (FailureKind.LOST, FailureKind.GOING, FailureKind.BUSY)
_REACH_S = 3.0
"""One of several encoders that has not said in this time what it is, is taken for away."""
_AWAY_S = 5.0
_FRESH_S = 30.0
_OF_THE_MODEL = ("family", "width", "weights_digest", "tokenizer_digest", "quantization", "compute_dtype", "backend")
"""Fields of a fingerprint that no request changes."""


class Encoders:
    """All of them. Made inside the event loop that uses them."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._all = [EncoderService(endpoint) for endpoint in endpoints]
        self._made_by: dict[str, EncoderFingerprint] = {}
        self._in_flight = dict.fromkeys(self.endpoints, 0)
        self._away_until = dict.fromkeys(self.endpoints, 0.0)
        self._asked_at = 0.0
        self._reference: EncoderFingerprint | None = None
        self.notices: list[Notice] = []
        """What is to be told of the choice; whoever tells it empties the list."""

    def __iter__(self) -> Iterator[EncoderService]:
        return iter(self._all)

    @property
    def first(self) -> EncoderService:
        """The one whose embeddings are wanted."""
        return self._all[0]

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Of all of them."""
        return tuple(service.endpoint for service in self._all)

    async def infos(self, timeout: float) -> list[EncoderInfo | ZrelayError]:
        """What each says of itself, or why it does not, in the order of the endpoints."""
        return await asyncio.gather(*(_info(service, timeout) for service in self._all))

    async def connect(self, budget: Budget) -> None:
        """Sees who is there and what they make. Raises the first's failure where none is."""
        timeout = budget.left("encoder")
        if len(self._all) == 1:
            await self.first.info(timeout)
            return
        now = time.monotonic()
        if self._made_by and now - self._asked_at < _FRESH_S:
            return
        answers, self._asked_at = await self.infos(min(timeout, _REACH_S)), now
        for service, answer in zip(self._all, answers, strict=True):
            if isinstance(answer, ZrelayError):
                self._away_until[service.endpoint] = now + _AWAY_S
            elif answer.fingerprint is not None:
                self._made_by[service.endpoint] = answer.fingerprint
        if all(isinstance(answer, ZrelayError) for answer in answers) and isinstance(answers[0], ZrelayError):
            raise answers[0]

    async def encode(self, request: EncodePrompts, budget: Budget) -> EncodePromptsReply:
        """EncodePrompts at the first, or at one that makes the same. Raises the last refusal."""
        if len(self._all) == 1:
            return await self.first.encode(request, budget.left("encoder"))
        await self.connect(budget)
        tried: set[str] = set()
        doubted: set[str] = set()
        refusal: ZrelayError | None = None
        while True:
            service = self._choose(tried, refusal)
            self._in_flight[service.endpoint] += 1
            try:
                reply = await service.encode(request, budget.left("encoder"))
                if service.endpoint in doubted or self._still_makes(service, reply):
                    return reply
                # It was started again, with another model: who makes what is asked anew, and one of them encodes.
                doubted.add(service.endpoint)
                self._asked_at = 0.0
                await self.connect(budget)
            except ZrelayError as error:
                if failure_kind(error) not in _GONE:
                    raise
                refusal = error
                tried.add(service.endpoint)
                self._away_until[service.endpoint] = time.monotonic() + _AWAY_S
            finally:
                self._in_flight[service.endpoint] -= 1

    async def close(self) -> None:
        """Ends the connections."""
        await asyncio.gather(*(service.close() for service in self._all))

    def _choose(self, tried: set[str], refusal: ZrelayError | None) -> EncoderService:
        """The one with the least of our prompts in flight among those that make what the first makes, else one that is
        equal to rounding. Raises FailedPrecondition (ENCODERS_DIFFER) where only others are left, else `refusal`."""
        reference, now = self._wanted(), time.monotonic()
        known = [service for service in self._all if service.endpoint in self._made_by]
        left = [service for service in known or [self.first] if service.endpoint not in tried]
        near = [service for service in left if self._away_until[service.endpoint] <= now] or left
        if not near and refusal is not None:
            raise refusal
        relations = {service: _relation(reference, self._made_by.get(service.endpoint)) for service in near}
        same = [service for service, relation in relations.items() if relation == fingerprint.EXACT]
        if same:
            return min(same, key=lambda service: self._in_flight[service.endpoint])
        other = next((s for s, relation in relations.items() if relation == fingerprint.EQUIVALENT), None)
        if other is None:
            raise self._differs(near[0], reference)
        self._tell(f"{other.endpoint} encodes: not the first encoder, but equal to rounding")
        return other

    def _still_makes(self, service: EncoderService, reply: EncodePromptsReply) -> bool:
        """Whether an answer comes from what the encoder said that it is. (A request chooses layer and think block.)"""
        said = self._made_by.get(service.endpoint)
        if said is None or not reply.message.results:
            return True
        made = fingerprint.from_message(reply.message.results[0].prompt_embeds.fingerprint)
        return all(getattr(made, name) == getattr(said, name) for name in _OF_THE_MODEL)

    def _wanted(self) -> EncoderFingerprint | None:
        """What is to be made: the first's as soon as it is known."""
        first = self._made_by.get(self.first.endpoint)
        if first is None and self._reference is None and self._made_by:
            endpoint, self._reference = next(iter(self._made_by.items()))
            self._tell(f"{self.first.endpoint} does not say what it is; {endpoint} encodes, alike or not")
        return first or self._reference

    def _differs(self, other: EncoderService, reference: EncoderFingerprint | None) -> FailedPrecondition:
        wanted, got = (made.digest if made else "" for made in (reference, self._made_by.get(other.endpoint)))
        return FailedPrecondition(
            f"{self.first.endpoint} does not answer, and {other.endpoint} makes other embeddings (fingerprint "
            f"{got[:12]}, not {wanted[:12]}): start the first again, or name the other alone (--encoder "
            f"{other.endpoint}), for another picture",
            reason="ENCODERS_DIFFER",
            field="encoder",
            metadata={"expected": wanted, "got": got},
        )

    def _tell(self, message: str) -> None:
        notice = Notice("encoder", message)
        if notice not in self.notices:
            self.notices.append(notice)


def _relation(reference: EncoderFingerprint | None, made_by: EncoderFingerprint | None) -> str:
    """What embeddings of one encoder are for who wants those of another."""
    if reference is None or made_by is None or reference.digest == made_by.digest:
        return fingerprint.EXACT
    try:
        return fingerprint.compare(reference, made_by).relation
    except ZrelayError:
        return fingerprint.REFUSED


async def _info(service: EncoderService, timeout: float) -> EncoderInfo | ZrelayError:
    try:
        return await service.info(timeout)
    except ZrelayError as error:
        return error
