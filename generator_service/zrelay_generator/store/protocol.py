"""The interface of a job store. `sqlite.SqliteJobStore` implements it for one machine."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from zrelay_generator.store.blobs import Buffer, IncomingContent
from zrelay_generator.store.clock import StoreClock
from zrelay_generator.store.records import JobRecord, JobState, ResultRecord
from zrelay_shared.errors import ZrelayError


class JobStore(Protocol):
    """Job records, results, and contents named by their SHA-256. For use from the event loop, except `read_now`.

    All methods raise Unavailable (STATE_UNWRITABLE) if the storage refuses.
    """

    @property
    def durable(self) -> bool:
        """Whether jobs outlive the process."""

    @property
    def problem(self) -> str:
        """What is wrong with the storage and what to do, for the operator; "" while all is well."""

    @property
    def clock(self) -> StoreClock:
        """The clock by which jobs are ordered and grow old."""

    @property
    def first_sequence(self) -> int:
        """Sequence number after which the events of this start are numbered."""

    @property
    def last_arrival(self) -> int:
        """The highest arrival of a stored job at start, 0 without jobs."""

    # Jobs.

    async def accept(
        self, record: JobRecord, spec: bytes, inputs: Mapping[str, Buffer | None], sizes: Mapping[str, int]
    ) -> None:
        """Writes a new job; it is durable when this returns.

        Args:
            record: The job.
            spec: Serialized GenerationSpec, with contents by name.
            inputs: The contents that it needs, by SHA-256; None for contents that its owner may name (`known_size`).
            sizes: Bytes of each content.

        Raises:
            ContentMissing: A content that should be stored is gone.
        """

    async def add_image(self, arrival: int, result: ResultRecord, data: Buffer) -> None:
        """Writes an image of a job."""

    async def finish(self, record: JobRecord, last: ResultRecord | None = None) -> None:
        """Writes the end of a job, with its last result if it succeeded."""

    async def spoil(self, arrival: int, error: ZrelayError, sha256: str) -> None:
        """Changes a job that succeeded to a failed one, because its image `sha256` cannot be read."""

    async def update_accepted(self, arrival: int, accepted: bytes) -> None:
        """Replaces the serialized JobAccepted of a job."""

    async def detach(self, arrival: int) -> None:
        """Marks a job as detached."""

    async def unfinished(self) -> tuple[list[JobRecord], list[int]]:
        """Returns the jobs to continue, sorted by arrival number, and the arrival numbers of damaged records."""

    async def by_id(self, job_id: str, owner: str | None) -> JobRecord | None:
        """Returns a job of an owner, or of any (None)."""

    async def by_request(self, request_id: str, owner: str | None) -> JobRecord | None:
        """Returns the latest job of a request id and an owner, or any owner (None)."""

    async def before(self, arrival: int, states: Sequence[JobState], limit: int, owner: str | None) -> list[JobRecord]:
        """Returns at most `limit` jobs of an owner, or of all (None), in these (ended) states that arrived before
        another, newest first."""

    async def spec(self, arrival: int) -> bytes:
        """Returns the spec of an unfinished job. Raises PayloadCorrupt (STORE_DAMAGED)."""

    async def results(self, arrival: int) -> list[ResultRecord]:
        """Returns the results of a job, in order."""

    async def forget(self, arrivals: Collection[int]) -> None:
        """Removes jobs and everything that belongs to them."""

    async def record_device_loss(self, job_ids: Collection[str]) -> None:
        """Increments the number of device losses of these unfinished jobs, which the device was running."""

    async def device_losses(self) -> dict[str, int]:
        """Returns how often the device was lost at each unfinished job, by job id."""

    # Contents.

    async def read(self, sha256: str) -> bytes:
        """Returns a content. Raises ContentMissing, ContentDamaged."""

    def read_now(self, sha256: str) -> bytes:
        """Returns a content, on the calling thread. Raises ContentMissing, ContentDamaged."""

    async def known_size(self, sha256: str, owner: str) -> int | None:
        """Returns the bytes of a stored content that an owner sent, or that one of its jobs produced; else None.

        It counts as used now.
        """

    async def needed(self, contents: Collection[str], owner: str) -> set[str]:
        """Returns which of these contents unfinished jobs of an owner need."""

    def incoming(self) -> IncomingContent:
        """Starts to receive a content whose digest is known at its end. The caller always calls `drop_incoming`."""

    async def write_incoming(self, incoming: IncomingContent, data: Buffer) -> None:
        """Appends to a content."""

    async def keep_incoming(self, incoming: IncomingContent, sha256: str, size: int, owner: str) -> None:
        """Stores a complete content under its digest, as sent by an owner."""

    async def drop_incoming(self, incoming: IncomingContent) -> None:
        """Removes a content that was not kept; does nothing if it was kept."""

    # Maintenance.

    async def retain(self) -> int:
        """Removes what exceeds the limits. Returns the number of removed jobs."""

    async def recover(self) -> bool:
        """Tests whether storage that failed works again, and returns the result."""

    async def sweep(self) -> int:
        """Removes files that belong to nothing: partial ones, and contents without a row. Returns their number."""

    def close(self) -> None:
        """Commits pending writes and closes the storage. Blocks; a second call does nothing."""
