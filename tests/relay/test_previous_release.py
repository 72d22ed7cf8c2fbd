"""The previous release works with this one: its client with these services, and this client with its services.

Both are run from their source, the previous one from a commit of this repository. When a release is made, its commit
becomes `PREVIOUS`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.contract.structure import PACKAGES, ROOT
from tests.helpers.polling import DEADLINE_S

PREVIOUS = "0117f7e959607fbcd17c1a417ccced10e08fd8a0"
"""The commit of the previous release."""

USE = """
import hashlib, json, sys
import zrelay_client
from zrelay_client import Client, Embeds, NotFound, read_provenance

endpoints, folder, other = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
size = {"width": 64, "height": 64, "num_inference_steps": 2}
with Client(**endpoints) as client:
    info = client.info()
    embeds = client.encode("a small red circle", negative_prompt="")
    embeds.save(f"{folder}/embeds.safetensors")
    result = client.generate(embeds, seed=7, guidance_scale=2.0, num_images=2, labels={"series": "a"}, **size)
    events = [type(event).__name__ for event in client.stream("a blue star", seed=1, preview_every=1, **size)]
    job = client.submit(embeds, seed=7, format="jpeg", priority="batch", **size)
    images = client.jobs.fetch(job.job_id)
    running = client.submit(embeds, width=512, height=512, num_inference_steps=100)
    cancelled = client.jobs.cancel(running.job_id)
    named = [client.generate(embeds, seed=seed, **size) for seed in (1, 2)]  # by value, then by digest
    (outcome,) = client.generate_many(["a blue star"], seeds=[1], **size)
    try:
        client.jobs.get("nosuchjob")
    except NotFound as error:
        unknown = error.reason
    picture = result.images[0].data
    (states,) = client.encode_images([picture], engine="qwen3_vl")
    states.save(f"{folder}/states.safetensors")
    conditioned = client.condition_prompt(embeds, states, alpha=0.5)
    blended = client.generate(conditioned.embeds, seed=7, **size)
    exchanged = client.generate(Embeds.load(f"{other}/embeds.safetensors"), seed=7, **size)
    listed = {each.job_id: each.state for each in client.jobs.list()}
print(json.dumps({
    "source": zrelay_client.__file__,
    "ready": [info.encoder.ready, info.vision.ready, info.generator.ready],
    "relation": [result.encoder_relation, blended.encoder_relation],
    "pixels": [each.images[0].pixels_sha256 for each in (result, blended, exchanged, *named)],
    "outcome": outcome.result.images[0].pixels_sha256,
    "events": [events[0], *events[-2:]],
    "job": [listed[job.job_id], cancelled.state, listed[running.job_id], unknown],
    "images": [[image.seed, image.format] for image in (*result.images, *images)],
    "provenance": sorted(read_provenance(picture)),
    "labels": read_provenance(picture)["labels"],
}))
"""


@dataclass(frozen=True)
class Release:
    """One release: its source, and a folder of its own."""

    source: Path
    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ZRELAY_")}
        state = {"ZRELAY_STATE": str(self.folder / "state"), "ZRELAY_CONFIG": str(self.folder / "config.toml")}
        paths = os.pathsep.join(str(self.source / folder) for folder in PACKAGES.values())
        return {**clean, **state, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}

    def python(self, *args: str) -> str:
        """Runs Python with this release's packages, and returns what it prints."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ran = subprocess.run(
            [sys.executable, *args],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    @contextmanager
    def services(self) -> Iterator[dict[str, str]]:
        """Serves all three roles while the block runs. Yields the endpoints by role."""
        served = self.python("-c", "import zrelay_generator; print(zrelay_generator.__file__)")
        assert Path(served).is_relative_to(self.source)
        self.python("-m", "zrelay_client", "up", "--detach", "--grace-s", "1")
        try:
            record = json.loads((self.folder / "state/stack.json").read_text())
            yield {service["role"]: service["endpoint"] for service in record["services"]}
        finally:
            self.python("-m", "zrelay_client", "down")

    def use(self, endpoints: dict[str, str], other: "Release") -> dict[str, Any]:
        """Uses services with this release's client, and generates from the embeddings that `other` saved."""
        printed = self.python("-c", USE, json.dumps(endpoints), str(self.folder), str(other.folder))
        found: dict[str, Any] = json.loads(printed)
        assert Path(found.pop("source")).is_relative_to(self.source)
        return found


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Release]:
    root = tmp_path_factory.mktemp("releases")
    previous = root / "source"
    previous.mkdir()
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", PREVIOUS, *PACKAGES.values()], capture_output=True, check=False
    )
    assert archive.returncode == 0, f"the commit is missing, fetch the full history: {archive.stderr.decode()}"
    subprocess.run(["tar", "-x", "-C", str(previous)], input=archive.stdout, check=True)
    return {"previous": Release(previous, root / "previous"), "present": Release(ROOT, root / "present")}


@pytest.mark.deep
@pytest.mark.parametrize(("client", "server"), [("previous", "present"), ("present", "previous")])
def test_a_client_works_with_the_services_of_another_release(
    client: str, server: str, releases: dict[str, Release]
) -> None:
    """It gets what the services' own client gets, image for image."""
    with releases[server].services() as endpoints:
        own = releases[server].use(endpoints, releases[server])
        found = releases[client].use(endpoints, releases[server])
        crossed = releases[server].use(endpoints, releases[client])
    assert own["ready"] == [True, True, True] and own["relation"][0] == "exact"
    assert own["job"] == ["succeeded", "cancelled", "cancelled", "JOB_UNKNOWN"]
    assert own["events"] == ["Accepted", "Image", "Done"] and own["labels"] == {"series": "a"}
    assert found == own
    assert crossed == own
