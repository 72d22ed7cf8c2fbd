"""A request that was parsed and found valid: what is admitted, stored and run."""

from collections.abc import Mapping
from dataclasses import dataclass

from zrelay_generator.features.protocol import JobSpec
from zrelay_generator.store.blobs import Buffer


@dataclass(frozen=True, slots=True)
class Submission:
    """A job to be accepted.

    Attributes:
        request_id: The client's id of the request.
        identity: SHA-256 (hex) of everything that was requested.
        job: What was requested.
        spec: Serialized GenerationSpec that generates the same image at any time, with contents by name.
        inputs: Its contents by SHA-256, None for those that are stored already.
        sizes: Bytes of each content.
        new_bytes: Bytes of the contents that no unfinished job needs yet, and of the spec. Of many jobs with the same
            embeddings one counts for all.
        detached: The job runs without anyone watching it.
        caller: Identity of the caller.
        budget_s: Seconds that the caller waits, None without a limit.
    """

    request_id: str
    identity: str
    job: JobSpec
    spec: bytes
    inputs: Mapping[str, Buffer | None]
    sizes: Mapping[str, int]
    new_bytes: int = 0
    detached: bool = False
    caller: str = ""
    budget_s: float | None = None
