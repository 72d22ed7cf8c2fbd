"""A request that was read and found good: what the board admits and the store keeps."""

from collections.abc import Mapping
from dataclasses import dataclass

from zrelay_generator.engine.job import JobSpec
from zrelay_generator.store.blobs import Buffer


@dataclass(frozen=True, slots=True)
class Request:
    """One job to be admitted.

    Attributes: `identity` SHA-256 (hex) of everything asked for; `spec` the serialized GenerationSpec that makes the
    same picture at any time, contents by name; `inputs` those contents, None for what is in the store already, and
    `sizes` their bytes; `new_bytes` of those that no unfinished job needs yet, which one of many jobs with the same
    embeddings counts for all; `caller` who asks; `budget_s` seconds that the caller waits, None for ever.
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
