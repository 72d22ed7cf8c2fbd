"""Adds to accepted jobs how their encoder relates to that of the checkpoint, once that encoder is known."""

import logging
from collections.abc import Callable
from dataclasses import replace

from zrelay_generator.features.protocol import JobSpec
from zrelay_generator.jobs.live import LiveJob
from zrelay_generator.jobs.prefetcher import LoadSpec
from zrelay_generator.store.protocol import JobStore
from zrelay_shared.errors import Unavailable, ZrelayError
from zrelay_shared.fingerprint import EncoderFingerprint

log = logging.getLogger(__name__)
IsRelated = Callable[[bytes], bool]
"""Returns whether a serialized JobAccepted has the relation of the encoder."""
Relate = Callable[[bytes, EncoderFingerprint, JobSpec], bytes]
"""Adds the relation to a serialized JobAccepted."""


class EncoderRelations:
    """The jobs whose JobAccepted lacks the relation, because they were accepted while the encoder was not known.

    Such a job is stored and computed at once, but nothing of it leaves before `settle`.
    """

    def __init__(self, store: JobStore, load: LoadSpec, is_related: IsRelated, relate: Relate) -> None:
        """Creates a collection without jobs.

        Args:
            store: Where the completed messages are written.
            load: Reads the spec of a job that an earlier process accepted.
            is_related: Checks a message.
            relate: Completes a message.
        """
        self._store, self._load = store, load
        self._is_related, self._relate = is_related, relate
        self._waiting: list[tuple[LiveJob, JobSpec | None]] = []

    def add(self, job: LiveJob, spec: JobSpec | None = None) -> None:
        """Adds a job if its message lacks the relation.

        Args:
            job: The job.
            spec: Its spec, None if it must be read from the store.
        """
        if not self._is_related(job.record.accepted):
            job.unrelated = True
            self._waiting.append((job, spec))

    async def settle(self, expected: EncoderFingerprint | None) -> None:
        """Completes the messages in memory and in the store, and wakes the watchers; does nothing for None."""
        while expected is not None and self._waiting:
            await self._complete(*self._waiting.pop(0), expected)

    async def _complete(self, job: LiveJob, spec: JobSpec | None, expected: EncoderFingerprint) -> None:
        try:
            accepted = self._relate(job.record.accepted, expected, spec or await self._load(job.record))
            job.record = replace(job.record, accepted=accepted)
            await self._store.update_accepted(job.record.arrival, accepted)
        except Unavailable as error:
            log.error("job %s: the relation of its encoder cannot be stored: %s", job.record.job_id, error)
        except ZrelayError as error:  # the job fails with the same error when it is loaded
            log.error("job %s: the relation of its encoder is not known: %s", job.record.job_id, error)
        except Exception:  # a problem of one job must not hold the others
            log.exception("job %s: the relation of its encoder is not known", job.record.job_id)
        finally:
            job.unrelated = False
            job.log.wake()
