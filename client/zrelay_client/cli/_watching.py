"""Jobs watched and fetched by the command line."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zrelay_client.cli._console import Console
from zrelay_client.cli._job_files import JobFiles
from zrelay_client.cli._painting import file_told, show_event
from zrelay_client.cli._previews import Previews
from zrelay_client.client import AsyncClient
from zrelay_client.events import Accepted, Done, Image, Preview
from zrelay_shared.errors import ZrelayError


async def watched(
    client: AsyncClient, job_id: str, after: int, files: JobFiles | None, previews: Previews | None, console: Console
) -> dict[str, Any]:
    """Shows a job to its end and writes what is asked for; what is to be told of it. Raises ZrelayError and OSError."""
    if previews is not None:
        previews.check()
    images: list[Image] = []
    done: Done | None = None
    console.status("connecting")
    async with client:
        job = await client.jobs.get(job_id)
        if files is not None:
            files.check(max(1, job.sampling.num_images))
        # Pictures that were told before are wanted all the same, where they are to be written.
        async for event in client.jobs.watch(job_id, after_sequence=0 if files is not None else after):
            if isinstance(event, Preview) and previews is not None:
                previews.write(event)
            if isinstance(event, Image):
                images.append(event)
            if isinstance(event, Done):
                done = event
            if not isinstance(event, Accepted) or not job.ended:
                show_event(console, event)
    timings = {} if done is None else {name.removesuffix("_s"): took for name, took in asdict(done.timings).items()}
    told = _written(job_id, tuple(images), files)
    if files is None:
        pictures = len(images) if done is None else done.images  # --after may lie behind some
        console.line(f"done: {pictures} pictures; `zrelay jobs fetch {job_id}` writes them")
    return {"job_id": job_id, "endpoint": job.endpoint, "files": told, "timings_s": timings}


async def fetched(client: AsyncClient, job_ids: Sequence[str], files: JobFiles, console: Console) -> dict[str, Any]:
    """Writes the pictures of jobs, one job after another; what is to be told, of those of several as well that could
    not be fetched. Raises OSError, and ZrelayError of a job by itself or where no service answers."""
    told: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    async with client:
        for job_id in job_ids:
            try:
                job = await client.jobs.get(job_id)
                files.check(max(1, job.sampling.num_images))
                console.status(f"{job_id}: {job.state}")
                told += _written(job_id, await client.jobs.fetch(job_id), files)
            except ZrelayError as error:
                if error.code == "UNAVAILABLE" or len(job_ids) == 1:
                    raise
                failed.append({"job_id": job_id, "reason": error.reason, "message": error.message})
    return {"files": told, "failed": failed}


def _written(job_id: str, images: tuple[Image, ...], files: JobFiles | None) -> list[dict[str, Any]]:
    if files is None:
        return []
    paths: Sequence[Path | None] = files.write(job_id, images)
    places = paths or [None] * len(images)  # none on stdout
    return [{**file_told(image, path), "job_id": job_id} for image, path in zip(images, places, strict=True)]
