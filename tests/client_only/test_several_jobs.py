"""`zrelay jobs cancel`, `zrelay jobs fetch` and `zrelay info` report everything they were asked for, failures too."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command_line import Completed, run_zrelay
from tests.helpers.jobs import NOBODY
from zrelay_client.testing import FakeServices
from zrelay_shared import exits


@pytest.fixture
def fake() -> Iterator[FakeServices]:
    with FakeServices() as services:
        yield services


@pytest.fixture
def jobs(fake: FakeServices, empty_home: Path) -> Any:
    """`zrelay jobs` against the fake generator; after the verb come the ids."""

    def run(verb: str, *args: str, generators: tuple[str, ...] = ()) -> Completed:
        flags = [f"--generator={endpoint}" for endpoint in (fake.endpoints["generator"], *generators)]
        return run_zrelay("jobs", verb, *args, *flags)

    return run


def submit(fake: FakeServices, steps: int = 2) -> str:
    """Submits a job and returns its id; a long one does not end by itself within a test."""
    size: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": steps, "seed": 7}
    with fake.client() as client:
        job = client.submit("fox", **size)
        if steps <= 2:
            client.jobs.fetch(job.job_id)
        return job.job_id


def test_cancel_lists_what_became_of_each_job(fake: FakeServices, jobs: Any) -> None:
    done = submit(fake)
    fake.generator.step_s = 60.0
    running = submit(fake, steps=50)
    ran = jobs("cancel", "unknown", done, running, running, "--json")
    values = json.loads(ran.stdout)
    assert [(job["job_id"], job["state"], job["outcome"]) for job in values["jobs"]] == [
        (done, "succeeded", "already_over"),
        (running, "cancelled", "cancelled"),
        (running, "cancelled", "already_over"),
    ]
    (failed,) = values["failed"]
    assert (failed["job_id"], failed["outcome"], failed["reason"]) == ("unknown", "not_found", "JOB_UNKNOWN")
    assert ran.returncode == exits.REFUSED
    assert ran.stderr == f"error: unknown: {failed['message']}\n"
    again = jobs("cancel", running, done)
    assert (again.returncode, again.stdout) == (0, f"{running} already cancelled\n{done} already succeeded\n")


def test_cancel_goes_on_where_a_generator_is_away(fake: FakeServices, jobs: Any) -> None:
    fake.generator.step_s = 60.0
    running = submit(fake, steps=50)
    ran = jobs("cancel", "unknown", running, "--json", generators=(NOBODY,))
    values = json.loads(ran.stdout)
    assert [(job["job_id"], job["outcome"]) for job in values["jobs"]] == [(running, "cancelled")]
    assert [(job["outcome"], job["reason"]) for job in values["failed"]] == [("failed", "UNAVAILABLE")]
    assert ran.returncode == exits.UNREACHABLE


def test_fetch_goes_on_after_each_kind_of_failure(fake: FakeServices, jobs: Any) -> None:
    first, second = submit(fake), submit(fake)
    fake.generator.step_s = 60.0
    cancelled = submit(fake, steps=50)
    assert jobs("cancel", cancelled).returncode == 0
    ran = jobs("fetch", "unknown", first, cancelled, second, "-o", "out/", "--json", generators=(NOBODY,))
    values = json.loads(ran.stdout)
    assert [(file["job_id"], file["path"]) for file in values["files"]] == [
        (first, "out/fox-7.png"),
        (second, "out/fox-7-2.png"),
    ]
    assert [(job["job_id"], job["outcome"], job["reason"]) for job in values["failed"]] == [
        ("unknown", "failed", "UNAVAILABLE"),
        (cancelled, "failed", "CANCELLED"),
    ]
    assert ran.returncode == exits.UNREACHABLE
    assert [line.split(": ")[:2] for line in ran.stderr.splitlines()] == [["error", "unknown"], ["error", cancelled]]


def test_fetch_reports_a_file_that_cannot_be_written(fake: FakeServices, jobs: Any) -> None:
    job_id = submit(fake)
    Path("fox.png").write_bytes(b"old")
    ran = jobs("fetch", job_id, "-o", "fox.png", "--json")
    (failed,) = json.loads(ran.stdout)["failed"]
    assert (failed["job_id"], failed["outcome"], failed["reason"]) == (job_id, "failed", "LOCAL_FILE")
    assert failed["message"].startswith("fox.png: the file exists already")
    assert (ran.returncode, ran.stderr) == (exits.LOCAL_FILE, f"error: {failed['message']}\n")


def test_info_lists_every_role(fake: FakeServices, empty_home: Path) -> None:
    encoder = fake.endpoints["encoder"]
    ran = run_zrelay("info", "--json", "--encoder", encoder, "--vision", NOBODY, "--generator", NOBODY)
    values = json.loads(ran.stdout)
    assert (values["encoder"]["ready"], "error" in values["encoder"]) == (True, False)
    for role in ("vision", "generator"):
        error = values[role].pop("error")
        assert values[role] == {"role": role, "endpoint": NOBODY}
        assert error["reason"] == "UNAVAILABLE" and f"cannot reach the {role} service" in error["message"]
    assert [each["role"] for each in values["endpoints"]] == ["encoder", "vision", "generator"]
    assert ran.returncode == exits.UNREACHABLE


def test_info_lists_every_role_where_none_answers(empty_home: Path) -> None:
    flags = ["--encoder", NOBODY, "--generator", NOBODY]
    ran = run_zrelay("info", "--json", *flags)
    values = json.loads(ran.stdout)
    assert [values[role]["error"]["reason"] for role in ("encoder", "generator")] == ["UNAVAILABLE"] * 2
    assert ran.returncode == exits.UNREACHABLE
    shown = run_zrelay("info", *flags)
    assert shown.returncode == exits.UNREACHABLE
    assert f"encoder at {NOBODY}: cannot reach" in shown.stdout and f"generator at {NOBODY}: cannot" in shown.stdout


def test_info_of_a_role_prefers_the_service_that_answers(fake: FakeServices, empty_home: Path) -> None:
    generator = fake.endpoints["generator"]
    ran = run_zrelay("info", "--json", "--generator", NOBODY, "--generator", generator)
    values = json.loads(ran.stdout)
    assert values["generator"]["endpoint"] == generator and "error" not in values["generator"]
    assert [(each["endpoint"], each["info"] is None) for each in values["endpoints"]] == [
        (NOBODY, True),
        (generator, False),
    ]
    assert ran.returncode == exits.UNREACHABLE
