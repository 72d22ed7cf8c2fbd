"""`zrelay jobs`, `generate --detach`, `--count` and `--seeds`, and several endpoints on the command line."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete

from tests.helpers.jobs import NOBODY, QUICK_FLAGS
from tests.helpers.links import spoiling
from zrelay_client import AsyncClient
from zrelay_client.cli import cli
from zrelay_client.cli._files import targets
from zrelay_client.cli._image_jobs import seeds_of
from zrelay_client.cli.jobs import job_rows
from zrelay_client.events import Job, JobFailure, Progress, Sampling
from zrelay_shared import exits

from .conftest import Services, Zrelay


@pytest.fixture
def jobs(services: Services, zrelay: Zrelay) -> Any:
    """`zrelay jobs` against the real generator."""

    async def run(verb: str, *args: str) -> Any:
        return await zrelay("jobs", verb, *args, "--generator", services.generator)

    return run


async def test_a_job_is_left_watched_listed_and_fetched(services: Services, zrelay: Zrelay, jobs: Any) -> None:
    left = await zrelay("generate", "a red fox", "--detach", "--seed", "7", *QUICK_FLAGS, *services.flags)
    assert left.returncode == 0, left.stderr
    job_id = left.stdout.strip()
    generator = services.endpoints["generator"]
    assert f"  zrelay jobs watch {job_id} --generator {generator}\n" in left.stderr
    assert f"  zrelay jobs fetch {job_id} --generator {generator} -o images/\n" in left.stderr
    watched = await jobs("watch", job_id, "--json")
    said = json.loads(watched.stdout)
    assert (said["job_id"], said["files"]) == (job_id, [])
    assert f"zrelay jobs fetch {job_id}" in watched.stderr
    listed = json.loads((await jobs("list", "--state", "succeeded", "--json")).stdout)["jobs"]
    assert {job["job_id"]: job["sampling"]["seed"] for job in listed}[job_id] == 7
    assert job_id in (await jobs("list")).stdout
    first = await jobs("fetch", job_id)
    again = await jobs("fetch", job_id)
    assert (first.stdout, again.stdout) == ("a-red-fox-7.png\n", "a-red-fox-7-2.png\n")
    assert Path("a-red-fox-7.png").read_bytes() == Path("a-red-fox-7-2.png").read_bytes()
    refused = await jobs("fetch", job_id, "-o", "a-red-fox-7.png")
    assert (refused.returncode, "exists already" in refused.stderr) == (exits.LOCAL_FILE, True)
    wrong = await jobs("fetch", job_id, "-o", "fox.jpg")
    assert wrong.returncode == exits.USAGE
    assert (await jobs("watch", job_id, "-o", "b.png", "--preview", "now.jpg")).stdout == "b.png\n"


async def test_pictures_of_a_job_on_stdout_and_what_of_several_cannot_be_fetched(
    services: Services, zrelay: Zrelay, jobs: Any
) -> None:
    left = await zrelay("generate", "fox", "--detach", "--seed", "3", *QUICK_FLAGS, *services.flags)
    job_id = left.stdout.strip()
    for verb in ("watch", "fetch"):
        ran = await jobs(verb, job_id, "-o", "-")
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout_bytes.startswith(b"\x89PNG") and ran.stdout_bytes.endswith(b"IEND\xaeB`\x82")
        assert (await jobs(verb, job_id, "-o", "-", "--json")).returncode == exits.USAGE
    ran = await jobs("fetch", "unknown", job_id, "--json")
    said = json.loads(ran.stdout)
    assert (ran.returncode, [file["path"] for file in said["files"]]) == (exits.REFUSED, ["fox-3.png"])
    assert [(job["job_id"], job["reason"]) for job in said["failed"]] == [("unknown", "JOB_UNKNOWN")]
    assert (await jobs("watch", job_id, "--after", str(1 << 64))).returncode == exits.USAGE


async def test_an_image_that_was_changed_on_its_way_is_not_written(services: Services, zrelay: Zrelay) -> None:
    left = await zrelay("generate", "fox", "--detach", "--seed", "5", *QUICK_FLAGS, *services.flags)
    job_id = left.stdout.strip()
    async with spoiling(services.generator, b"IDAT", b"IDAt") as endpoint:
        ran = await zrelay("jobs", "fetch", job_id, "-o", "fox.png", "--generator", endpoint)
    assert ran.returncode != exits.OK and "expected a file with the digest" in ran.stderr
    assert list(Path().iterdir()) == []


def test_a_file_name_of_a_hostile_prompt_takes_no_time() -> None:
    """Normalising a million combining characters in a row takes half an hour."""
    prompt = "Fox \u0301\u0323" + "\u0301\u0323" * 500_000
    assert targets(None, None, prompt=prompt, count=1, force=False).slug == "fox"


async def test_a_list_says_whose_jobs_are_missing(services: Services, zrelay: Zrelay) -> None:
    both = ["--generator", services.generator, "--generator", NOBODY]
    ran = await zrelay("jobs", "list", *both)
    assert (ran.returncode, f"the jobs of {NOBODY} are missing" in ran.stderr) == (0, True)
    assert list(json.loads((await zrelay("jobs", "list", "--json", *both)).stdout)["missing"]) == [NOBODY]


async def test_watching_from_behind_the_end_tells_the_end(services: Services, zrelay: Zrelay, jobs: Any) -> None:
    left = await zrelay("generate", "fox", "--detach", *QUICK_FLAGS, *services.flags)
    job_id = left.stdout.strip()
    whole = await jobs("watch", job_id, "--json")
    async with AsyncClient(generator=services.generator) as client:
        last = (await client.jobs.get(job_id)).sequence
    for after in (last - 1, last, last + 1000):
        watched = await jobs("watch", job_id, "--after", str(after), "--timeout", "60", "--json")
        assert (watched.returncode, json.loads(watched.stdout)) == (0, json.loads(whole.stdout)), watched.stderr
        assert f"done: 1 image; `zrelay jobs fetch {job_id}` writes it" in watched.stderr


async def test_many_are_left_with_one_prompt_encoded_once(services: Services, zrelay: Zrelay, jobs: Any) -> None:
    left = await zrelay("generate", "fox", "--detach", "--seeds", "1", "--json", *QUICK_FLAGS, *services.flags)
    (job,) = json.loads(left.stdout)["jobs"]
    Path("all").mkdir()
    fetched = await jobs("fetch", job["job_id"], job["job_id"], "-o", "all")
    assert fetched.stdout.split() == ["all/fox-1.png", "all/fox-1-2.png"]
    assert (await jobs("fetch", job["job_id"], job["job_id"], "-o", "x.png")).returncode == exits.USAGE


async def test_accepted_jobs_are_printed_where_another_is_refused(
    services: Services, zrelay: Zrelay, jobs: Any
) -> None:
    long = ["--size", "512x512", "--num-inference-steps", "100"]
    left = await zrelay("generate", "fox", "--detach", "--seeds", "1-5", "--json", *long, *services.flags)
    printed = json.loads(left.stdout)
    ids = [job["job_id"] for job in printed["jobs"]]
    try:
        assert left.returncode == exits.BUSY and 1 <= len(ids) < 5, left.stderr
        seeds = [job["sampling"]["seed"] for job in printed["jobs"]] + [one["seed"] for one in printed["failures"]]
        assert sorted(seeds) == [1, 2, 3, 4, 5]
        assert all(one["reason"] and one["message"] for one in printed["failures"])
        assert f"{len(ids)} of 5 jobs submitted" in left.stderr
        again = await zrelay("generate", "fox", "--detach", "--seeds", "6,7,8", *long, *services.flags)
        ids += again.stdout.split()
        assert again.returncode == exits.BUSY and f"{len(again.stdout.split())} of 3 jobs submitted" in again.stderr
    finally:
        assert (await jobs("cancel", *ids)).returncode == 0


@pytest.mark.parametrize(
    ("args", "command"),
    [
        (["-o", "fox.png"], "zrelay jobs fetch ID -o PATH"),
        (["--force"], "zrelay jobs fetch ID --force"),
        (["--preview", "now.jpg"], "zrelay jobs watch ID --preview PATH"),
    ],
)
async def test_detached_jobs_write_no_files(zrelay: Zrelay, args: list[str], command: str) -> None:
    ran = await zrelay("generate", "fox", "--detach", *args, "--encoder", NOBODY, "--generator", NOBODY)
    assert ran.returncode == exits.USAGE and f"{args[0][:3]}" in ran.stderr and command in ran.stderr, ran.stderr


async def test_cancel_says_what_became_of_each(services: Services, zrelay: Zrelay, jobs: Any) -> None:
    long = ["--size", "512x512", "--num-inference-steps", "100"]
    left = await zrelay("generate", "fox", "--detach", *long, *services.flags)
    job_id = left.stdout.strip()
    ran = await jobs("cancel", job_id, "unknown")
    assert ran.stdout == f"{job_id} cancelled\n"
    assert (ran.returncode, "no job 'unknown'" in ran.stderr) == (exits.REFUSED, True)
    watched = await jobs("watch", job_id)
    assert (watched.returncode, "cancelled" in watched.stderr) == (exits.REFUSED, True), "nobody interrupted it"
    watched = await jobs("watch", job_id, "--after", "1000", "--timeout", "60")
    assert (watched.returncode, "cancelled" in watched.stderr) == (exits.REFUSED, True)
    await services.idle()


async def test_a_batch_is_written_as_it_comes_and_failures_are_reported(services: Services, zrelay: Zrelay) -> None:
    args = ["generate", "fox", *QUICK_FLAGS, *services.flags]
    ran = await zrelay(*args, "--seeds", "3,7-9", "--in-flight", "2")
    assert sorted(ran.stdout.split()) == [f"fox-{seed}.png" for seed in (3, 7, 8, 9)]
    assert ran.stderr.strip().startswith("4 images in ")
    ran = await zrelay(*args, "--count", "2", "--num-images", "2", "--seed", "10", "-o", "n.png", "--json")
    said = json.loads(ran.stdout)
    assert sorted((file["path"], file["seed"]) for file in said["files"]) == [
        (f"n-{index + 1}.png", 10 + index) for index in range(4)
    ]
    bad = await zrelay(*args[:2], "--width", "100", "--count", "2", *services.flags)
    assert (bad.returncode, bad.stdout) == (exits.REFUSED, "")
    assert bad.stderr.count("divisible by 16") == 2
    (count_of_one,) = json.loads((await zrelay(*args, "--count", "1", "--seed", "5", "--json")).stdout)["files"]
    assert count_of_one["path"] == "fox-5.png"


async def test_a_dead_endpoint_among_several(services: Services, zrelay: Zrelay, tmp_path: Path) -> None:
    generator = services.generator
    (tmp_path / "config.toml").write_text(
        f'[profile.default.encoder]\nendpoint = "{services.encoder}"\n'
        f'[profile.default.generator]\nendpoint = ["{NOBODY}", "{generator}"]\n'
    )
    ran = await zrelay("generate", "fox", "--json", *QUICK_FLAGS)
    assert json.loads(ran.stdout)["generator"] == generator
    shown = await zrelay("info")
    assert shown.returncode == exits.UNREACHABLE
    assert f"generator at {NOBODY}: cannot reach" in shown.stdout
    assert f"generator at {generator}: ready" in shown.stdout
    told = await zrelay("doctor")
    assert f"fail  generator {NOBODY} port: cannot connect" in told.stdout
    assert f"ok    generator {generator} health: ready" in told.stdout
    assert "ok    encoder port" in told.stdout
    listed = await zrelay("jobs", "list", "--generator", NOBODY, "--generator", generator)
    assert listed.returncode == 0
    assert (await zrelay("jobs", "list", "--generator", NOBODY)).returncode == exits.UNREACHABLE


async def test_doctor_compares_several_of_a_role(services: Services, zrelay: Zrelay, stranger: str) -> None:
    encoder, generator = services.encoder, services.generator
    twice = ["--generator", generator, "--generator", generator.replace("127.0.0.1", "localhost")]
    ran = await zrelay("doctor", "--encoder", encoder, "--encoder", stranger, *twice)
    assert "ok    generators alike: 2 that make the same images" in ran.stdout
    assert f"warn  encoder {stranger} stands in: never: it makes other embeddings" in ran.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--seeds", "1", "--count", "2"], "leave out --seed and --count"),
        (["--seeds", "5-1"], "numbers and ranges"),
        (["--seeds", "a"], "numbers and ranges"),
        (["--seeds", "0-99999"], "at most 10000"),
        (["--count", "0"], "x>=1"),
        (["--count", "100000"], "at most 10000 images"),
        (["--in-flight", "2"], "add --count, --seeds or --prompts"),
        (["--count", "2", "-o", "-"], "expected one image"),
    ],
)
async def test_batches_that_make_no_sense(services: Services, zrelay: Zrelay, args: list[str], says: str) -> None:
    ran = await zrelay("generate", "fox", *args, *services.flags)
    assert (ran.returncode, says in ran.stderr) == (exits.USAGE, True), ran.stderr


def test_seeds_of_a_batch() -> None:
    assert seeds_of("7, 9,1-3", None, None, 1) == [7, 9, 1, 2, 3]
    assert seeds_of(None, 3, 10, 4) == [10, 14, 18]
    assert len(set(seeds_of(None, 100, None, 1))) == 100
    with pytest.raises(click.UsageError):
        seeds_of("1", None, 2, 1)


def test_the_table_of_jobs() -> None:
    sampling = Sampling(128, 96, 8, 0.0, 0.0, 1.0, 3.0, 7, 2)
    progress = Progress("running", "denoise", 3, 8, 10.0, 1.0, 0)
    queued = Progress("queued", "", 0, 0, 0.0, 1.0, 4)
    common: dict[str, Any] = {
        "request_id": "r",
        "endpoint": "box:7503",
        "sequence": 1,
        "ended_at": 0.0,
        "sampling": sampling,
    }
    rows = job_rows(
        [
            Job(job_id="a", state="running", progress=progress, failure=None, accepted_at=95.0, **common),
            Job(job_id="b", state="queued", progress=queued, failure=None, accepted_at=40.0, **common),
            Job(job_id="c", state="failed", progress=None, failure=JobFailure("X", "no"), accepted_at=0.0, **common),
        ],
        now=100.0,
    )
    assert rows == [
        ("a", "running", "5 s", "128x96 x2", "8", "7", "", "denoise 3/8"),
        ("b", "queued", "1 min", "128x96 x2", "8", "7", "", "4 ahead"),
        ("c", "failed", "2 min", "128x96 x2", "8", "7", "", "no"),
    ], "one generator is not named"


async def test_job_ids_are_completed(services: Services, zrelay: Zrelay) -> None:
    left = await zrelay("generate", "fox", "--detach", *QUICK_FLAGS, *services.flags)
    job_id = left.stdout.strip()

    def complete(*args: str) -> list[str]:
        found = ShellComplete(cli, {}, "zrelay", "_ZRELAY_COMPLETE").get_completions(["jobs", *args], job_id[:6])
        return [item.value for item in found]

    import asyncio

    where = ["--generator", services.generator]
    assert await asyncio.to_thread(complete, "watch", *where) == [job_id]
    assert await asyncio.to_thread(complete, "watch", "--generator", NOBODY) == []
