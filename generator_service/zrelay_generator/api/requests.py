"""A GenerationSpec off the wire to a Submission, and a stored spec back to a JobSpec."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from zrelay.v1 import generation_pb2 as pb
from zrelay_generator.api.contents import named, whole
from zrelay_generator.api.messages import sampling_message
from zrelay_generator.api.parsing import parse_spec
from zrelay_generator.api.parsing_sampling import parse_sampling
from zrelay_generator.features.acceptance import Acceptance
from zrelay_generator.features.protocol import JobSpec, Sampling
from zrelay_generator.jobs.intake import content_unknown
from zrelay_generator.jobs.submission import Submission
from zrelay_generator.store.blobs import ContentDamaged, ContentMissing
from zrelay_generator.store.protocol import JobStore
from zrelay_generator.store.records import JobRecord, damaged
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.wire import Parcel


class Requests:
    """Reads requests; contents by name come from the store."""

    def __init__(self, accepts: Acceptance, store: JobStore, check_fits: Callable[[JobSpec], None]) -> None:
        """`check_fits` raises OutOfMemory for what the device has not the memory for."""
        self._accepts, self._store, self._check_fits = accepts, store, check_fits

    async def read(
        self,
        parcel: Parcel[Any],
        spec: pb.GenerationSpec,
        request_id: str,
        *,
        detached: bool = False,
        caller: str = "",
        budget_s: float | None = None,
    ) -> Submission:
        """The request of a message. Raises as `parsing.parse_spec`; NotFound (CONTENT_UNKNOWN);
        Unavailable (STATE_UNWRITABLE)."""
        request = await asyncio.to_thread(self._read, parcel, spec, request_id, detached, caller, budget_s)
        # What is on disk and may be let go counts as well: a job that needs it keeps it there.
        needed = await self._store.needed(request.sizes)
        new_bytes = sum(size for sha256, size in request.sizes.items() if sha256 not in needed)
        # The spec counts too: it stands in the job's row, with all that is no content (texts, labels).
        return replace(request, new_bytes=new_bytes + len(request.spec))

    async def load(self, record: JobRecord) -> JobSpec:
        """The spec of a job that waits, read again from the store. Raises PayloadCorrupt where it is damaged;
        Unavailable (STATE_UNWRITABLE)."""
        return await asyncio.to_thread(self._load, await self._store.spec(record.arrival))

    def _read(
        self,
        parcel: Parcel[Any],
        spec: pb.GenerationSpec,
        request_id: str,
        detached: bool,
        caller: str,
        budget_s: float | None,
    ) -> Submission:
        parts = named(parcel, spec)
        fetched: dict[str, bytes] = {}

        def fetch(sha256: str, size: int, field: str) -> bytes:
            if sha256 not in fetched:
                fetched[sha256] = parts.inputs.get(sha256) or self._stored(sha256, field)
            if size and size != len(fetched[sha256]):
                raise InvalidArgument(
                    f"{field}.size_bytes: expected {len(fetched[sha256])}, the content's, got {size}",
                    field=f"{field}.size_bytes",
                    reason="CONTENT_SIZE",
                )
            return fetched[sha256]

        full = whole(parts.parcel, fetch) if parts.refs else Parcel(spec, parcel)
        job = parse_spec(full, full.message, self._accepts)
        self._check_fits(job)
        identity = parts.identity
        sizes = {sha256: len(data) for sha256, data in (parts.inputs | fetched).items()}
        self._fill(parts.parcel.message, job.sampling)
        return Submission(
            request_id=request_id,
            identity=identity,
            job=job,
            spec=parts.parcel.to_bytes(),
            inputs={sha256: parts.inputs.get(sha256) for sha256 in sizes},
            sizes=sizes,
            detached=detached,
            caller=caller,
            budget_s=budget_s,
        )

    def _fill(self, spec: pb.GenerationSpec, sampling: Sampling) -> None:
        """Writes down what is to be done whatever the defaults are when the job is read again; the seed at least."""
        filled = sampling_message(sampling)
        try:
            same = parse_sampling(filled, self._accepts.sampling) == sampling
        except InvalidArgument:
            same = False
        if same:
            spec.sampling.CopyFrom(filled)
        else:  # a default that a float of the contract cannot hold exactly
            spec.sampling.seed = sampling.seed

    def _stored(self, sha256: str, field: str) -> bytes:
        try:
            return self._store.read_now(sha256)
        except (ContentMissing, ContentDamaged) as error:
            raise content_unknown(sha256, field) from error

    def _load(self, raw: bytes) -> JobSpec:
        def read(sha256: str, size: int, field: str) -> bytes:
            try:
                return self._store.read_now(sha256)
            except (ContentMissing, ContentDamaged) as error:
                raise damaged("an input of this job") from error

        try:
            full = whole(Parcel.parse(pb.GenerationSpec, raw), read)
            return parse_spec(full, full.message, self._accepts)
        except InvalidArgument as error:
            if error.reason in ("MESSAGE_MALFORMED", "MESSAGE_TOO_COMPLEX"):
                raise damaged("this job") from error
            raise
