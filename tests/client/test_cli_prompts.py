"""`zrelay generate --prompts`: lines are checked before work begins, and a second run continues the first."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.polling import until
from zrelay_client import read_provenance
from zrelay_shared import exits

from .conftest import Services, Zrelay

SMALL: dict[str, Any] = {"size": "64x64", "num_inference_steps": 2}


def write(name: str, *lines: Any) -> str:
    """Writes a file of prompts, and returns its name."""
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    Path(name).write_text("\n".join(texts) + "\n")
    return name


def records(name: str) -> list[dict[str, Any]]:
    """Reads a results file."""
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


@pytest.fixture
def run(services: Services, zrelay: Zrelay) -> Any:
    """`zrelay generate --prompts` against the real services."""

    async def run(file: str, *args: str, stdin: bytes = b"") -> Any:
        return await zrelay("generate", "--prompts", file, *args, *services.flags, stdin=stdin)

    return run


async def test_lines_with_options_of_their_own(run: Any) -> None:
    file = write(
        "zoo.jsonl",
        {"prompt": "a red fox", "seed": 7, **SMALL},
        "",
        {"prompt": "a dog", "seed": 1, "output": "dogs/dog.webp", "labels": {"kind": "dog"}, "size": "64x80"},
        {"prompt": "a cat", "num_images": 2, "output": "cat.png", **SMALL},
    )
    ran = await run(file, "-o", "out/", "--num-inference-steps", "3", "--label", "kind=animal")
    assert ran.returncode == 0, ran.stderr
    written = ["out/a-red-fox-7.png", "out/cat-1.png", "out/cat-2.png", "out/dogs/dog.webp"]
    assert sorted(ran.stdout.split()) == written
    assert "4 images in " in ran.stderr
    by_line = {record["line"]: record for record in records("out/zoo.results.jsonl")}
    assert sorted(by_line) == [1, 3, 4]
    assert [file["path"] for file in by_line[3]["files"]] == ["dogs/dog.webp"]
    assert by_line[1]["sampling"]["num_inference_steps"] == 2, "the line takes precedence"
    assert by_line[3]["sampling"] | {"width": 64, "height": 80, "num_inference_steps": 3} == by_line[3]["sampling"]
    labels = []
    for path in ("out/dogs/dog.webp", "out/a-red-fox-7.png"):
        provenance = read_provenance(Path(path).read_bytes())
        assert provenance is not None
        labels.append(provenance["labels"])
    assert labels == [{"kind": "dog"}, {"kind": "animal"}]


async def test_a_second_run_does_what_is_missing(run: Any, services: Services) -> None:
    file = write("p.jsonl", {"prompt": "fox", **SMALL}, {"prompt": "fox", **SMALL}, {"prompt": "dog", "width": 100})
    first = await run(file, "-o", "out/")
    assert first.returncode == exits.REFUSED
    assert "error: line 3: " in first.stderr and "divisible by 16" in first.stderr
    images = first.stdout.split()
    assert len(set(images)) == 2, "equal lines get different seeds"
    states = {record["line"]: record["state"] for record in records("out/p.results.jsonl")}
    assert states == {1: "succeeded", 2: "succeeded", 3: "failed"}
    again = await run(file, "-o", "out/")
    assert (again.returncode, again.stdout) == (exits.REFUSED, ""), "a line that failed runs again"
    assert "2 of 3 lines are done already" in again.stderr
    # Moved lines are known again, an image that is gone is generated again, a changed line runs.
    lines = Path(file).read_text().splitlines()
    write(file, *lines[1::-1], {"prompt": "dog", **SMALL, "seed": 3})
    gone = Path(images[0])
    data = gone.read_bytes()
    gone.unlink()
    last = await run(file, "-o", "out/")
    assert last.returncode == 0, last.stderr
    assert sorted(last.stdout.split()) == sorted(["out/dog-3.png", str(gone)])
    assert gone.read_bytes() == data
    done = await run(file, "-o", "out/", "--json")
    assert (done.returncode, done.stdout) == (0, "") and "all lines (3) are done already" in done.stderr


@pytest.mark.parametrize("output", [{}, {"output": "fox.png"}, {"output": "fox.webp", "num_images": 2}])
async def test_a_crash_between_image_and_record_makes_no_second_image(run: Any, output: dict[str, Any]) -> None:
    file = write("p.jsonl", "\ufeff" + json.dumps({"prompt": "fox\u2028", **SMALL, **output}, ensure_ascii=False))
    first = await run(file)
    record = Path("p.results.jsonl").read_text()
    Path("p.results.jsonl").write_text(record[: len(record) // 2])  # as if it were cut off
    again = await run(file)
    assert again.stdout == first.stdout
    assert again.returncode == 0, again.stderr
    images = [path.name for path in Path().iterdir() if path.suffix in (".png", ".webp")]
    assert sorted(images) == first.stdout.split()
    assert (await run(file)).stderr.strip() == "all lines (1) are done already"


async def test_a_named_file_with_other_content_fails_its_line_only(run: Any) -> None:
    line = {"prompt": "fox", "seed": 1, "output": "fox.png", **SMALL}
    file = write("p.jsonl", line)
    assert (await run(file)).returncode == 0
    data = Path("fox.png").read_bytes()
    write(file, {**line, "seed": 2}, {"prompt": "dog", "seed": 1, "output": "dog.png", **SMALL})
    ran = await run(file)
    assert (ran.returncode, ran.stdout) == (exits.REFUSED, "dog.png\n"), ran.stderr
    assert "error: line 1: fox.png: this file holds something else: pass --force" in ran.stderr
    assert Path("fox.png").read_bytes() == data
    assert [record["reason"] for record in records("p.results.jsonl") if record["state"] == "failed"] == [
        "OUTPUT_EXISTS"
    ]
    ran = await run(file, "--force")
    assert (ran.returncode, ran.stdout) == (0, "fox.png\n"), ran.stderr
    assert Path("fox.png").read_bytes() != data and sorted(path.name for path in Path().glob("*.png"))[1:] == [
        "fox.png"
    ]


async def test_force_replaces_no_image_of_another_line(run: Any) -> None:
    cat, dog = ({"prompt": prompt, "seed": 1, **SMALL} for prompt in ("a!", "a?"))
    file = write("p.jsonl", cat)
    assert (await run(file, "--force")).stdout == "a-1.png\n"
    write(file, cat, dog)
    assert (await run(file, "--force")).stdout == "a-1-2.png\n"
    assert (await run(file, "--force")).stdout == ""


async def test_options_of_the_command_are_defaults(run: Any, services: Services, zrelay: Zrelay) -> None:
    encoded = await zrelay("encode", "a cat", "-o", "cat.safetensors", "--negative-prompt", "", *services.flags[:2])
    assert encoded.returncode == 0, encoded.stderr
    file = write("p.jsonl", {"prompt_embeds": "cat.safetensors", "seed": 1}, {"prompt": "dog"}, {"prompt": "dog"})
    common = ["--guidance-scale", "1.5", "--negative-prompt", "a fox", "--size", "64x64", "--seed", "9"]
    ran = await run(file, *common, "--num-inference-steps", "2", "--preview", "previews")
    assert ran.returncode == 0, ran.stderr
    assert sorted(ran.stdout.split()) == ["cat-1.png", "dog-9.png", "dog-9.png"], "equal images share a file"
    found = {record["line"]: record for record in records("p.results.jsonl")}
    assert {record["sampling"]["guidance_scale"] for record in found.values()} == {1.5}
    assert {path.name.split("-image")[0] for path in Path("previews").iterdir()} == {"job-1", "job-2", "job-3"}


async def test_json_lines_from_standard_input(run: Any) -> None:
    lines = [{"prompt": "fox", "seed": 1, **SMALL}, {"prompt": "fox", "height": 17}]
    ran = await run("-", "--json", "-q", stdin="\n".join(map(json.dumps, lines)).encode())
    assert ran.returncode == exits.REFUSED
    printed = {record["line"]: record for record in map(json.loads, ran.stdout.splitlines())}
    assert printed[1]["files"][0]["path"] == "fox-1.png" and printed[1]["state"] == "succeeded"
    assert printed[2] | {"state": "failed", "reason": "HEIGHT_INVALID"} == printed[2]
    assert Path("stdin.results.jsonl").exists()


async def test_all_lines_are_checked_before_any_runs(zrelay: Zrelay) -> None:
    Path("notes.txt").write_text("no image")
    cases: list[tuple[Any, str]] = [
        ({"prompt": "a", "sed": 1}, "unknown key 'sed'; did you mean 'seed'?"),
        ({"prompt": "a", "seed": "x"}, "seed: expected a whole number"),
        ("{", "expected a JSON object: "),
        ("[1]", 'expected an object such as {"prompt": "a red fox"}, got [1]'),
        ({"seed": 1}, "expected prompt or prompt_embeds, got neither"),
        ({"prompt": 3}, "prompt: expected a string, got 3"),
        ({"prompt": " "}, "prompt: expected a description of the image, got an empty prompt"),
        ({"prompt_embeds": "notes.txt"}, "notes.txt: expected a safetensors file of at most"),
        ({"prompt": "\ud800"}, "half of a surrogate pair"),
        ({"prompt": "a", "output": "../a.png"}, "output: expected the name of a file within the output folder"),
        ({"prompt": "a", "quality": 5}, "quality: expected none for a png file"),
        ({"prompt": "a", "output": "a.bmp"}, "expected the suffix .png"),
        ({"prompt": "a", "alpha": 0.5}, "alpha is for reference images: add reference"),
        ({"prompt": "a", "image": "notes.txt"}, "notes.txt: expected an image"),
        ({"prompt": "a", "reference": "gone.png"}, "gone.png: No such file"),
        ({"prompt": "a", "size": "64x64", "width": 64}, "leave out width and height"),
        ({"prompt": "a", "blend": "stir", "reference": "notes.txt"}, "blend: expected one of interpolate"),
    ]
    nowhere = ["--encoder", "127.0.0.1:1", "--generator", "127.0.0.1:1"]
    for line, message in cases:
        file = write("bad.jsonl", {"prompt": "a fox"}, line)
        ran = await zrelay("generate", "--prompts", file, "-o", "out/", *nowhere)
        assert ran.returncode == exits.REFUSED, ran.stderr
        assert ran.stderr.startswith("error: bad.jsonl: line 2: ") and message in ran.stderr, ran.stderr
    file = write("bad.jsonl", *(line for line, _ in cases))
    ran = await zrelay("generate", "--prompts", file, "-o", "out/", *nowhere)
    assert f"{len(cases)} lines are invalid; nothing was run" in ran.stderr and "and 7 more" in ran.stderr
    file = write("same.jsonl", {"prompt": "a", "output": "x.png"}, {"prompt": "b", "output": "x.png"})
    ran = await zrelay("generate", "--prompts", file, "-o", "out/", *nowhere)
    assert "line 2: output: out/x.png is that of line 1" in ran.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a fox"], "--prompts and PROMPT: choose one"),
        (["--count", "2"], "--prompts and --count: choose one"),
        (["--detach"], "--prompts and --detach: choose one"),
        (["-o", "a.png"], "expected a folder with --prompts"),
        (["-o", "-"], "expected a folder with --prompts"),
    ],
)
async def test_options_that_contradict(zrelay: Zrelay, args: list[str], message: str) -> None:
    ran = await zrelay("generate", "--prompts", write("p.jsonl", {"prompt": "a"}), *args)
    assert ran.returncode == exits.USAGE and message in ran.stderr, ran.stderr


async def test_a_service_that_is_away_ends_the_run_and_leaves_the_lines(services: Services, zrelay: Zrelay) -> None:
    file = write("p.jsonl", {"prompt": "fox", **SMALL})
    there = ["--encoder", services.encoder, "--generator", "127.0.0.1:1"]
    ran = await zrelay("generate", "--prompts", file, *there)
    assert ran.returncode == exits.UNREACHABLE and "cannot reach the generator" in ran.stderr
    assert not Path("p.results.jsonl").exists()


def test_ctrl_c_cancels_and_the_next_run_continues(services: Services, empty_home: Path) -> None:
    lines = [{"prompt": "fox", "seed": 1, **SMALL}]
    lines += [{"prompt": "fox", "seed": seed, "size": "512x512", "num_inference_steps": 100} for seed in (2, 3)]
    file = write("p.jsonl", *lines)
    command = [sys.executable, "-m", "zrelay_client", "generate", "--prompts", file, "--in-flight", "1"]
    process = subprocess.Popen([*command, *services.flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: Path("p.results.jsonl").exists(), "the first line is done")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (exits.INTERRUPTED, "fox-1.png\n")
    assert "run the same command again to continue" in err
    write(file, lines[0], *({**line, **SMALL} for line in lines[1:]))
    ran = subprocess.run([*command, *services.flags], capture_output=True, text=True, check=False)
    assert (ran.returncode, sorted(ran.stdout.split())) == (0, ["fox-2.png", "fox-3.png"]), ran.stderr
