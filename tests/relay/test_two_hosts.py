"""A Mac, a GPU box and a laptop as docs/how-to/two-boxes.md sets them up, on three hosts with a network of their own.
The commands are those of the page; services start by the commands of their units."""

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import link
import pytest

from tests.helpers.hosts import Host, Script, steps
from tests.helpers.links import Cable
from tests.helpers.polling import DEADLINE_S, until
from zrelay_client import read_provenance
from zrelay_shared import exits

pytestmark = [pytest.mark.timeout(900), pytest.mark.deep]

PAGE = "how-to/two-boxes.md"
SET_UP = ("Set up the GPU box", "Set up the Mac", "Pair the two", "Add the laptop")
JOBS = 16
"""Twice as many as a client has in flight: prompts are left to encode when the first image arrives."""
AWAY_S = 3.0


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    """The hosts, on which nothing runs."""
    if why_not := link.possible():
        pytest.skip(why_not)
    with link.switched(3) as places:
        names = {"Mac": "mac", "GPU box": "gpu-box", "laptop": "laptop"}
        hosts = {
            name: Host(host_name, place, tmp_path / host_name)
            for (name, host_name), place in zip(names.items(), places, strict=True)
        }
        script = Script(hosts)
        try:
            yield script
        finally:
            script.close()


def test_machines_of_the_page_deliver_every_picture_once(script: Script) -> None:
    mac, box, laptop = script.hosts.values()
    for section in SET_UP:
        script.run(steps(PAGE, section))
    assert read_provenance((laptop.here / "fox.png").read_bytes()) is not None

    [batch] = steps(PAGE, "When a machine sleeps or restarts")
    words = batch.words[1:]
    write_lines(laptop, "undisturbed")
    ran = laptop.zrelay(*words)
    assert ran.returncode == 0, ran.stderr
    undisturbed = results(laptop)
    (laptop.here / "animals").rename(laptop.here / "undisturbed")

    write_lines(laptop, "disturbed")
    disturb(laptop, words, mac, box)
    disturbed = results(laptop)
    assert sorted(each["line"] for each in disturbed) == [*range(1, JOBS + 1)], "each once"
    assert pixels(disturbed) == pixels(undisturbed)
    files = sorted(path.name for path in (laptop.here / "animals").glob("*.png"))
    assert files == sorted(path.name for path in (laptop.here / "undisturbed").glob("*.png")) and len(files) == JOBS
    jobs = json.loads(laptop.zrelay("jobs", "list", "--all", "--json").stdout)["jobs"]
    assert sorted(each["state"] for each in jobs) == ["succeeded"] * (2 * JOBS + 1), "no job ran twice"

    box.place = box.place.move("10.213.78.99")
    script.run(steps(PAGE, "When a machine has another address or name"))
    script.run(steps(PAGE, "When a certificate ends"))
    ran = laptop.zrelay("generate", "a red fox", "-o", "fox3.png")
    assert ran.returncode == 0, ran.stderr

    script.run(steps(PAGE, "When a machine is lost"))
    ran = until(lambda: refused(laptop), "the laptop is refused")
    assert ran.returncode == exits.REFUSED and "revoked" in ran.stderr, ran.stderr
    script.run(steps(PAGE, "Open the firewall"))


def write_lines(laptop: Host, label: str) -> None:
    """Writes the file of prompts. Another label makes other jobs of the same images."""
    common = {"size": "128x128", "deterministic": True, "labels": {"run": label}}
    lines = [{"prompt": f"animal {i}", "seed": i, **common} for i in range(JOBS)]
    (laptop.here / "animals.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def disturb(laptop: Host, words: tuple[str, ...], mac: Host, box: Host) -> None:
    """Runs the jobs. Meanwhile the Mac is away for some seconds; then the GPU box loses power and starts again."""
    with (laptop.root / "batch.log").open("wb") as log:
        batch = laptop.start(*words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        until(lambda: results(laptop), "the first image arrives")
        cable = Cable(mac.place.namespace, mac.place.address)
        cable.down()
        # The length of the outage that this test is about.
        time.sleep(AWAY_S)
        before = len(results(laptop))
        assert before < JOBS and batch.poll() is None
        asyncio.run(cable.up())
        until(lambda: len(results(laptop)) > before, "another image arrives")
        box.kill("generator")
        assert len(results(laptop)) < JOBS and batch.poll() is None
        box.start_unit("generator")
        assert batch.wait(DEADLINE_S) == 0, (laptop.root / "batch.log").read_text()
    finally:
        batch.kill()
        batch.wait()


def refused(laptop: Host) -> subprocess.CompletedProcess[str] | None:
    """Generates an image, and returns the failed command if it failed."""
    ran = laptop.zrelay("generate", "a red fox", "-o", "fox3.png", "--force")
    return ran if ran.returncode else None


def results(laptop: Host) -> list[dict[str, Any]]:
    """Returns the results that the jobs have delivered so far."""
    file = laptop.here / "animals/animals.results.jsonl"
    whole = file.read_text().rpartition("\n")[0] if file.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def pixels(results: list[dict[str, Any]]) -> dict[int, list[str]]:
    """Returns line -> digests of the pixels of its images."""
    return {each["line"]: [file["pixels_sha256"] for file in each["files"]] for each in results}
