"""Reference images on one machine: what `zrelay up` starts, the three-service path, and what lacks a service says."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.jobs import PROMPT
from tests.helpers.processes import Machine
from zrelay_client import read_provenance
from zrelay_shared import exits

QUICK = ("--num-inference-steps", "2", "--seed", "1")


def draw(folder: Path, name: str) -> str:
    """A picture in the working folder, transparent at its left."""
    image = Image.new("RGBA", (96, 128), (30, 160, 40, 255))
    image.paste((0, 0, 0, 0), (0, 0, 20, 128))
    image.save(folder / name)
    return name


def test_the_stack_has_a_vision_service_that_generate_finds(here: Machine) -> None:
    assert set(here.endpoints()) == {"encoder", "vision", "generator"}
    name = draw(here.here, "style.png")
    said = here.json("generate", PROMPT, "-o", "fox.png", "--reference", name, "--alpha", "0.4", *QUICK)
    assert said["encoder"]["relation"] == "experimental" and said["timings_s"]["vision"] > 0
    told = read_provenance((here.here / "fox.png").read_bytes())
    assert told is not None and told["encoder"]["modifications"][0] == "conditioning"
    plain = here.json("generate", PROMPT, "-o", "plain.png", *QUICK)
    assert plain["files"][0]["pixels_sha256"] != said["files"][0]["pixels_sha256"]


def test_states_are_saved_and_blended_later(here: Machine) -> None:
    name = draw(here.here, "style.png")
    ran = here.zrelay("vision", "encode", name, "-o", "style.safetensors")
    assert ran.returncode == 0, ran.stderr
    later = here.json("generate", PROMPT, "-o", "a.png", "--reference", "style.safetensors", *QUICK)
    now = here.json("generate", PROMPT, "-o", "b.png", "--reference", name, *QUICK)
    assert later["files"][0]["pixels_sha256"] == now["files"][0]["pixels_sha256"]


def test_doctor_and_info_know_it(here: Machine) -> None:
    names = {check["name"]: check["state"] for check in here.json("doctor")["checks"]}
    assert names["vision health"] == names["vision siglip"] == names["vision fits encoder"] == "ok"
    engines = {engine["name"]: engine["width"] for engine in here.json("info")["vision"]["engines"]}
    assert engines["qwen3_vl"] == here.json("info")["encoder"]["fingerprint"]["width"]


def test_omni_needs_a_checkpoint_that_knows_it(here: Machine) -> None:
    ran = here.zrelay("generate", PROMPT, "--omni", draw(here.here, "a.png"))
    assert ran.returncode == exits.REFUSED and "serve a Z-Image Omni checkpoint" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_a_stack_without_it_says_how_to_have_it(machine: Machine) -> None:
    machine.state.mkdir()
    record = {"model": "x", "grace_s": 1.0, "services": []}
    (machine.state / "stack.json").write_text(json.dumps(record))
    ran = machine.zrelay(
        "generate", PROMPT, "--reference", draw(machine.here, "a.png"), "--encoder", "a", "--generator", "b"
    )
    assert ran.returncode == exits.REFUSED and "no vision is configured" in ran.stderr
    assert machine.process("up", "--no-vision", "--siglip", ".").returncode == exits.USAGE


@pytest.mark.deep
def test_demo_paints_after_an_image(machine: Machine) -> None:
    """Encoder, vision service and generator on the demo's Omni checkpoint, and nothing left behind."""
    missing = machine.process("demo", "--omni", "gone.png")
    assert missing.returncode == exits.LOCAL_FILE and missing.stderr == "error: gone.png: No such file or directory\n"
    ran = machine.process("demo", "--omni", draw(machine.here, "a.png"))
    assert ran.returncode == 0, ran.stderr
    told = read_provenance((machine.here / "out/demo.png").read_bytes())
    assert told is not None and len(told["omni"]["file_sha256"]) == 1
    assert not machine.state.exists()
