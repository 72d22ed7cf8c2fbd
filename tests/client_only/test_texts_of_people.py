"""What people write by hand: byte order marks, line ends, digits of other scripts, the largest seeds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command_line import Completed, run_zrelay
from tests.helpers.refusals import refused, refused_async
from zrelay_client import AsyncClient, GenerateOptions, InvalidArgument
from zrelay_client.calibration import read_corpus
from zrelay_client.testing import FakeServices
from zrelay_shared import exits, texts
from zrelay_shared.limits import MAX_SEED

PROMPT = "a small red circle\non a blue background"
WRITTEN = {
    "unix": PROMPT.encode() + b"\n",
    "windows": PROMPT.replace("\n", "\r\n").encode() + b"\r\n",
    "windows, mark": PROMPT.replace("\n", "\r\n").encode("utf-8-sig"),
    "old mac": PROMPT.replace("\n", "\r").encode(),
}


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServices]:
    with FakeServices() as services:
        yield services


def generate(fake: FakeServices, *args: str, stdin: bytes = b"") -> Completed:
    flags = [part for role in ("encoder", "generator") for part in (f"--{role}", fake.endpoints[role])]
    return run_zrelay("generate", *args, *flags, stdin=stdin)


def pixels(fake: FakeServices, *args: str, stdin: bytes = b"") -> str:
    ran = generate(fake, *args, "--seed", "7", "--json", "--force", "-o", "out.png", stdin=stdin)
    assert ran.returncode == exits.OK, ran.stderr
    digest: str = json.loads(ran.stdout)["files"][0]["pixels_sha256"]
    return digest


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
def test_the_same_text_is_read_on_every_platform(written: bytes) -> None:
    assert texts.decode(written, "file").rstrip("\n") == PROMPT


def test_a_prompt_on_standard_input_makes_the_same_image_on_every_platform(
    fake: FakeServices, empty_home: Path
) -> None:
    assert {pixels(fake, "-", stdin=written) for written in WRITTEN.values()} == {pixels(fake, PROMPT)}


def test_a_prompt_in_utf_16_is_refused_with_the_remedy(fake: FakeServices, empty_home: Path) -> None:
    ran = generate(fake, "-", stdin=PROMPT.encode("utf-16"))
    assert ran.returncode == exits.USAGE
    assert "the prompt on standard input: expected UTF-8 text, got UTF-16" in ran.stderr
    assert "save the file as UTF-8" in ran.stderr


def test_a_file_of_prompts_may_have_a_mark_and_line_ends_of_windows(fake: FakeServices, empty_home: Path) -> None:
    lines = [{"prompt": "a fox", "seed": 1}, {"prompt": "line one\r\nline two\u2028", "seed": 2}]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\r\n" for line in lines)
    Path("prompts.jsonl").write_bytes(text.encode("utf-8-sig"))
    ran = generate(fake, "--prompts", "prompts.jsonl", "-o", "out/")
    assert ran.returncode == exits.OK, ran.stderr
    records = [json.loads(line) for line in Path("out/prompts.results.jsonl").read_text("utf-8").split("\n") if line]
    prompts = sorted(record["prompt"] for record in records)
    assert prompts == ["a fox", "line one\r\nline two\u2028"]  # a JSON string is data, and stays as it is


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{}\n".encode("utf-16"), "prompts.jsonl: expected UTF-8 text, got UTF-16"),
        (
            b'{"prompt": "a"}\r\n{"prompt": "\xe9"}\r\n',
            "prompts.jsonl: expected UTF-8 text, got the byte 0xe9 in line 2",
        ),
    ],
)
def test_a_file_of_prompts_in_another_encoding_is_refused(
    fake: FakeServices, empty_home: Path, data: bytes, says: str
) -> None:
    Path("prompts.jsonl").write_bytes(data)
    ran = generate(fake, "--prompts", "prompts.jsonl", "-o", "out/")
    assert (ran.returncode, says in ran.stderr) == (exits.REFUSED, True), ran.stderr


def test_a_corpus_may_have_a_mark_and_line_ends_of_windows(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes("# prompts\r\na fox\r\n\r\nan owl\u2028by night\r\n".encode("utf-8-sig"))
    assert read_corpus(corpus).prompts == ("a fox", "an owl\u2028by night")


@pytest.mark.parametrize(
    "flags",
    [
        ("--size", "12²x128"),
        ("--size", "١٢٨x128"),
        ("--seeds", "٣-٥"),
        ("--count", "٣"),
        ("--count", "2", "--in-flight", "²"),
        ("--seed", "٣"),
        ("--seed", "1_000"),
        ("--width", "١٢٨"),
        ("--guidance-scale", "١"),
        ("--generator", "127.0.0.1:750²"),
    ],
)
def test_digits_of_other_scripts_are_refused(empty_home: Path, flags: tuple[str, ...]) -> None:
    ran = run_zrelay("generate", "a fox", "--encoder", "127.0.0.1:1", "--generator", "127.0.0.1:1", *flags)
    assert ran.returncode in (exits.USAGE, exits.REFUSED), ran.stderr
    assert repr(flags[-1]) in ran.stderr


@pytest.mark.parametrize(
    "command", [["jobs", "list", "--limit", "٣"], ["up", "--timeout", "٣"], ["demo", "--seed", "٣"]]
)
def test_every_number_of_a_command_has_ascii_digits(empty_home: Path, command: list[str]) -> None:
    ran = run_zrelay(*command)
    assert (ran.returncode, f"'{command[-1]}' is not a valid" in ran.stderr) == (exits.USAGE, True), ran.stderr


@pytest.mark.parametrize(
    "flags",
    [
        ("--num-images", "2", "--seed", f"{MAX_SEED}"),
        ("--count", "2", "--seed", f"{MAX_SEED}"),
        ("--count", "2", "--num-images", "2", "--seed", f"{MAX_SEED - 2}"),
        ("--num-images", "2", "--seeds", f"5,{MAX_SEED}"),
        ("--seeds", f"{MAX_SEED}-{MAX_SEED + 1}"),
    ],
)
def test_seeds_whose_last_image_has_none_are_refused_before_anything_is_sent(
    empty_home: Path, flags: tuple[str, ...]
) -> None:
    ran = run_zrelay("generate", "a fox", "--encoder", "127.0.0.1:1", "--generator", "127.0.0.1:1", *flags)
    assert ran.returncode in (exits.USAGE, exits.REFUSED), ran.stderr
    assert "--seed" in ran.stderr and "at most" in ran.stderr.replace("0 to", "at most")


def test_the_largest_seeds_are_taken(fake: FakeServices, empty_home: Path) -> None:
    small = ("--size", "64x64", "-o", "out/", "--json")
    ran = generate(fake, "a fox", "--num-images", "2", "--seed", f"{MAX_SEED - 1}", *small)
    assert [file["seed"] for file in json.loads(ran.stdout)["files"]] == [MAX_SEED - 1, MAX_SEED]
    ran = generate(fake, "a fox", "--seeds", f"{MAX_SEED}", *small)
    assert [file["seed"] for file in json.loads(ran.stdout)["files"]] == [MAX_SEED]


def test_a_line_whose_last_image_has_no_seed_is_refused(fake: FakeServices, empty_home: Path) -> None:
    Path("prompts.jsonl").write_text(json.dumps({"prompt": "a fox", "seed": MAX_SEED, "num_images": 3}))
    ran = generate(fake, "--prompts", "prompts.jsonl", "-o", "out/")
    assert ran.returncode == exits.REFUSED and "line 1: seed: expected" in ran.stderr, ran.stderr


async def test_the_library_refuses_seeds_whose_last_image_has_none(fake: FakeServices) -> None:
    refused(lambda: GenerateOptions(seed=MAX_SEED, num_images=2), reason="SEED_INVALID", match="image i has seed")
    assert GenerateOptions(seed=MAX_SEED).seed == MAX_SEED
    async with AsyncClient(encoder=fake.endpoints["encoder"], generator=fake.endpoints["generator"]) as client:
        outcomes: Any = client.generate_many("a fox", seeds=[1, MAX_SEED], num_images=2)
        await refused_async(anext(outcomes), InvalidArgument, reason="SEED_INVALID", match="image i has seed")
