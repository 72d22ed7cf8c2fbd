"""Results and failures as the JSON that the store keeps."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from zrelay_generator.engine.events import Done, Image
from zrelay_generator.engine.job import Timings
from zrelay_generator.images.writing import ImageFormat
from zrelay_generator.store.rows import EventRow
from zrelay_shared.errors import PayloadCorrupt, ZrelayError
from zrelay_shared.status import BY_CODE, BY_REASON


def event_row(sequence: int, event: Image | Done) -> EventRow:
    """A result for the store; an image's bytes are its file's, not the row's."""
    if isinstance(event, Done):
        return EventRow(sequence, json.dumps({"done": asdict(event)}))
    fields = asdict(replace(event, data=b""))
    del fields["data"]
    return EventRow(sequence, json.dumps({"image": fields}), event.file_sha256, len(event.data))


def event_of(row: EventRow) -> Image | Done:
    """A result from the store; an image comes without its bytes. Raises PayloadCorrupt."""
    try:
        (kind, fields), *_ = json.loads(row.body).items()
        if kind == "done":
            return Done(int(fields["images"]), Timings(**fields["timings"]))
        return Image(**{**fields, "format": ImageFormat(fields["format"])}, data=b"")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged("a result of this job") from error


def error_text(error: ZrelayError) -> str:
    """A failure for the store."""
    return json.dumps(
        {
            "code": error.code,
            "reason": error.reason,
            "message": error.message,
            "field": error.field,
            "metadata": error.metadata,
            "retry_after_s": error.retry_after_s,
        }
    )


def error_of(text: str) -> ZrelayError:
    """A failure from the store; where it cannot be read, a PayloadCorrupt that says so."""
    try:
        said: Mapping[str, Any] = json.loads(text)
        kind = BY_REASON.get(said["reason"]) or BY_CODE[said["code"]]
        if kind.code != said["code"]:
            kind = BY_CODE[said["code"]]
        return kind(
            said["message"],
            reason=said["reason"],
            field=said["field"],
            metadata=said["metadata"],
            retry_after_s=said["retry_after_s"],
        )
    except (ValueError, TypeError, KeyError):
        return damaged("why this job failed")


def damaged(what: str) -> PayloadCorrupt:
    """What the generator had kept is not there any more as it was written."""
    return PayloadCorrupt(
        f"{what} was damaged on the generator's disk: send the request again; the operator should look at that disk",
        reason="STORE_DAMAGED",
    )
