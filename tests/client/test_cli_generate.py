"""`zrelay generate` and `encode`: names, formats, what is refused before anything is computed, what is told."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.jobs import ENDLESS_FLAGS, QUICK_FLAGS
from zrelay_client import read_provenance
from zrelay_shared import exits

from .conftest import Services, Zrelay


@pytest.fixture
def paint(services: Services, zrelay: Zrelay) -> Any:
    """`zrelay generate` with a small picture of few steps, through the real services."""

    async def run(*args: str, stdin: bytes = b"") -> Any:
        return await zrelay("generate", *args, *QUICK_FLAGS, *services.flags, stdin=stdin)

    return run


async def test_a_name_made_of_prompt_and_seed_that_never_overwrites(paint: Any) -> None:
    first = await paint("A Red Fox, naïve!", "--seed", "7")
    second = await paint("A Red Fox, naïve!", "--seed", "7")
    assert (first.returncode, second.returncode) == (0, 0)
    assert (first.stdout, second.stdout) == ("a-red-fox-naive-7.png\n", "a-red-fox-naive-7-2.png\n")
    assert Path("a-red-fox-naive-7.png").read_bytes() == Path("a-red-fox-naive-7-2.png").read_bytes()
    for hop in ("connect", "encode", "queue", "prepare", "denoise", "decode", "transfer", "write"):
        assert hop in first.stderr


async def test_json_says_everything_once(paint: Any) -> None:
    ran = await paint("-", "-o", "fox.webp", "--json", "-q", stdin="a réd fox\n".encode())
    said = json.loads(ran.stdout)
    assert ran.stderr == ""
    assert ran.stdout.count("\n") == 1
    assert said["files"][0]["path"] == "fox.webp"
    assert said["files"][0]["format"] == "webp"
    assert "data" not in said["files"][0]
    assert said["encoder"]["relation"] == "exact"
    assert set(said["timings_s"]) >= {"connect", "encode", "denoise", "transfer", "write", "total"}
    told = read_provenance(Path("fox.webp").read_bytes())
    assert told is not None
    assert told["prompt"] == "a réd fox"
    assert told["sampling"]["seed"] == said["seed"]


async def test_one_step_is_named_in_the_singular(services: Services, zrelay: Zrelay) -> None:
    ran = await zrelay(
        "generate", "fox", "--size", "64x64", "--num-inference-steps", "1", "--seed", "7", *services.flags
    )
    assert "64 x 64, 1 step, seed 7" in ran.stderr


async def test_a_configured_quality_is_ignored_for_png_files(paint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZRELAY_GENERATE_QUALITY", "5")
    assert (await paint("fox", "-o", "a.png")).returncode == 0
    assert (await paint("fox", "-o", "low.jpg", "--seed", "1")).returncode == 0
    assert (await paint("fox", "-o", "high.jpg", "--seed", "1", "--quality", "95")).returncode == 0
    assert Path("low.jpg").stat().st_size < Path("high.jpg").stat().st_size


async def test_several_images_get_numbers(paint: Any) -> None:
    ran = await paint("fox", "-o", "fox.jpg", "--num-images", "3")
    assert ran.stdout.split() == ["fox-1.jpg", "fox-2.jpg", "fox-3.jpg"]
    ran = await paint("fox", "-o", "fox.jpg", "--num-images", "3")
    assert ran.returncode == exits.LOCAL_FILE
    assert "fox-1.jpg: the file exists already" in ran.stderr
    assert (await paint("fox", "-o", "fox.jpg", "--num-images", "3", "--force")).returncode == 0


async def test_a_folder_as_output(paint: Any) -> None:
    Path("pictures").mkdir()
    ran = await paint("fox", "-o", "pictures", "--format", "jpeg", "--seed", "42")
    assert ran.stdout == "pictures/fox-42.jpg\n"


async def test_stdout_is_the_picture_and_nothing_else(paint: Any) -> None:
    ran = await paint("fox", "-o", "-", "--seed", "42")
    assert list(Path().iterdir()) == []
    await paint("fox", "-o", "fox.png", "--seed", "42")
    assert ran.stdout.encode("latin-1") == Path("fox.png").read_bytes()


async def test_previews_in_a_folder_or_in_one_file(paint: Any) -> None:
    await paint("fox", "-o", "a.png", "--preview", "previews")
    assert sorted(path.name for path in Path("previews").iterdir())[-1].startswith("image-1-step-00")
    await paint("fox", "-o", "b.png", "--preview", "now.jpg")
    assert Path("now.jpg").read_bytes().startswith(b"\xff\xd8")


async def test_guidance_takes_the_empty_negative_prompt(paint: Any) -> None:
    guided = ["--guidance-scale", "2", "--seed", "1"]
    for name, negative in (("a", []), ("b", ["--negative-prompt", ""]), ("c", ["--negative-prompt", "a dog"])):
        ran = await paint("fox", "-o", f"{name}.png", *guided, *negative)
        assert ran.returncode == 0, ran.stderr
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes() != Path("c.png").read_bytes()
    ran = await paint("fox", "-o", "d.png", "--negative-prompt", "a dog")
    assert "note: the negative prompt had no effect: guidance_scale is 0" in ran.stderr


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["fox", "-o", "none/fox.png"], exits.LOCAL_FILE, "none: this folder does not exist"),
        (["fox", "-o", "taken.png/fox.png"], exits.LOCAL_FILE, "taken.png: expected a folder, but this is a file"),
        (
            ["fox", "-o", "taken.png/new/fox.png"],
            exits.LOCAL_FILE,
            "taken.png/new: expected a folder, but taken.png is a file",
        ),
        (["fox", "-o", "taken.png"], exits.LOCAL_FILE, "taken.png: the file exists already: pass --force"),
        (["fox", "-o", "/dev/null", "--force"], exits.LOCAL_FILE, "/dev/null: not a regular file"),
        (["fox", "-o", "fox.bmp"], exits.USAGE, "expected the suffix .png, .jpg, .jpeg, .webp, got .bmp"),
        (["fox", "-o", "fox.png", "--format", "webp"], exits.USAGE, "is the name of a png file, but --format is webp"),
        (["fox", "-o", "-", "--num-images", "2"], exits.USAGE, "expected one image, got 2"),
        (["fox", "--num-images", "1000000000"], exits.USAGE, "expected at most 10000 images of one command"),
        (["fox", "-o", "-", "--json"], exits.USAGE, "both use standard output"),
        (["fox", "--size", "big"], exits.USAGE, "expected WIDTHxHEIGHT"),
        (["fox", "--size", "64x64", "--width", "64"], exits.USAGE, "--size sets width and height"),
        ([], exits.USAGE, "expected a prompt, got none"),
        (["fox", "--prompt-embeds", "x.safetensors"], exits.USAGE, "leave them out"),
        (["--prompt-embeds", "none.safetensors"], exits.LOCAL_FILE, "none.safetensors: No such file"),
        (["--prompt-embeds", "taken.png"], exits.REFUSED, "expected a safetensors file"),
        (["fox", "--preview", "none/now.jpg"], exits.LOCAL_FILE, "none: this folder does not exist"),
        (["fox", "--profile", "home"], exits.REFUSED, "no profile 'home'"),
        (["fox", "--generator", "http://box:7503"], exits.REFUSED, "generator: expected an endpoint"),
        (["-"], exits.REFUSED, "got an empty prompt"),
        (
            ["fox", "--size", "99999x17"],
            exits.REFUSED,
            "--size (width): expected 64 to 2048 pixels, divisible by 16, got 99999; use 2048, and 64 for height in "
            "place of 17",
        ),
        (["fox", "--size", "64x100"], exits.REFUSED, "--size (height): expected"),
        (["fox", "--width", "100"], exits.REFUSED, "divisible by 16, got 100"),
        (["fox", "--sigmas", "1,0.5,0.7"], exits.REFUSED, "strictly decreasing values, got 0.7 after 0.5\n"),
        (
            ["fox", "--long-prompt-mode", "pool"],
            exits.REFUSED,
            "--long-prompt-mode: this encoder does not support encode.long_prompt.pool: use truncate or refuse\n",
        ),
        (["fox", "--template", "x"], exits.REFUSED, "does not support encode.template: leave it out\n"),
        (["fox", "--generator", "box:99999"], exits.REFUSED, "got 'box:99999'; a port is 1 to 65535\n"),
        (["fox", "--quality", "5"], exits.REFUSED, "--quality: expected none for a png file, which is lossless, got 5"),
        (["fox", "-o", "a.png", "--quality", "5"], exits.REFUSED, "got 5: set --format to jpeg or webp\n"),
        (["fox", "--width", "-16"], exits.REFUSED, "width: expected a whole number"),
        (["fox", "--width", "wide"], exits.USAGE, "'--width': expected a whole number"),
    ],
)
async def test_refusals_in_one_line_and_nothing_written(
    services: Services, zrelay: Zrelay, args: list[str], code: int, says: str
) -> None:
    Path("taken.png").write_text("mine")
    endpoints = services.flags if "--generator" not in args else services.flags[:2]
    ran = await zrelay("generate", *args, *endpoints)
    assert ran.returncode == code
    assert says in ran.stderr
    assert ran.stdout == ""
    assert "Traceback" not in ran.stderr
    assert [path.name for path in Path().iterdir()] == ["taken.png"]
    assert Path("taken.png").read_text() == "mine"


async def test_nothing_configured_says_what_to_do(zrelay: Zrelay) -> None:
    ran = await zrelay("generate", "fox")
    assert ran.returncode == exits.REFUSED
    assert "`zrelay up --detach`" in ran.stderr
    assert "--encoder HOST:PORT --generator HOST:PORT" in ran.stderr


async def test_nobody_there(services: Services, zrelay: Zrelay) -> None:
    ran = await zrelay("generate", "fox", "--encoder", "127.0.0.1:1", "--generator", services.generator)
    assert ran.returncode == exits.UNREACHABLE
    assert ran.stderr.startswith("error: cannot reach the encoder service at 127.0.0.1:1")
    assert ran.stderr.count("\n") == 1


async def test_the_time_is_up(services: Services, zrelay: Zrelay) -> None:
    ran = await zrelay("generate", "fox", "--timeout", "0.5", *ENDLESS_FLAGS, *services.flags)
    assert ran.returncode == exits.TIMEOUT, ran.stderr
    assert list(Path().iterdir()) == []
    await services.idle()


async def test_an_encoder_that_does_not_fit(services: Services, zrelay: Zrelay, stranger: str) -> None:
    ran = await zrelay("generate", "fox", "--encoder", stranger, "--generator", services.generator)
    assert ran.returncode == exits.REFUSED
    assert "width" in ran.stderr
    assert list(Path().iterdir()) == []


async def test_settings_from_file_and_environment(
    services: Services, zrelay: Zrelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text(
        f'[profile.lan.encoder]\nendpoint = "{services.encoder}"\n'
        "[generate]\nnum_inference_steps = 2\nshift = 1.5\nwidth = 64\n"
    )
    monkeypatch.setenv("ZRELAY_GENERATOR", services.generator)
    monkeypatch.setenv("ZRELAY_GENERATE_SHIFT", "2.5")
    sampling = json.loads((await zrelay("generate", "fox", "--profile", "lan", "--json")).stdout)["sampling"]
    assert sampling | {"num_inference_steps": 2, "shift": 2.5, "width": 64, "height": 128} == sampling


async def test_the_prompt_stays_out_of_the_file_on_request(paint: Any) -> None:
    await paint("a secret fox", "--no-prompt-in-file", "-o", "fox.png")
    assert b"secret" not in Path("fox.png").read_bytes()


async def test_encode_writes_what_generate_takes(services: Services, zrelay: Zrelay) -> None:
    encoder, generator = services.flags[:2], services.flags[2:]
    guided = [*QUICK_FLAGS, "--json", "--seed", "42", "--guidance-scale", "1.5"]
    ran = await zrelay("encode", "a red fox", "-o", "fox.safetensors", "--negative-prompt", "", *encoder)
    assert ran.stdout == "fox.safetensors\n"
    assert " tokens" in ran.stderr
    assert (await zrelay("encode", "a red fox", "-o", "fox.safetensors", *encoder)).returncode == exits.LOCAL_FILE
    there = await zrelay("generate", "--prompt-embeds", "fox.safetensors", *guided, *generator)
    direct = await zrelay("generate", "a red fox", *guided, *services.flags)
    there_file, direct_file = json.loads(there.stdout)["files"][0], json.loads(direct.stdout)["files"][0]
    assert there_file["pixels_sha256"] == direct_file["pixels_sha256"]
    assert there_file["path"] == "fox-42.png"
    await zrelay("encode", "a red fox", "-o", "bare.safetensors", *encoder)
    refused = await zrelay("generate", "--prompt-embeds", "bare.safetensors", *guided, *generator)
    assert refused.returncode == exits.REFUSED
    assert '--negative-prompt ""' in refused.stderr


async def test_encode_tells_what_a_long_prompt_lost(services: Services, zrelay: Zrelay) -> None:
    args = ["encode", "-", "--encoder", services.encoder, "--text-limit", "20"]
    ran = await zrelay(*args, "-o", "long.safetensors", stdin=b"a red fox " * 20)
    assert ran.returncode == 0
    assert "note: the prompt has " in ran.stderr
    assert "over the limit of 20: truncate" in ran.stderr
    said = json.loads((await zrelay(*args, "-o", "again.safetensors", "--json", stdin=b"a red fox " * 20)).stdout)
    assert "over the limit of 20" in said["warnings"][0]


@pytest.mark.parametrize("seconds", ["0", "-1", "inf"])
async def test_a_timeout_is_a_number_of_seconds(zrelay: Zrelay, seconds: str) -> None:
    ran = await zrelay(
        "generate", "fox", "--timeout", seconds, "--encoder", "127.0.0.1:1", "--generator", "127.0.0.1:1"
    )
    assert ran.returncode == exits.REFUSED
    assert f"--timeout: expected a number of seconds above 0, got {seconds}" in ran.stderr


async def test_long_prompts_are_reported(paint: Any) -> None:
    ran = await paint(" ".join(["fox"] * 1200), "-o", "fox.png")
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"note: the prompt has \d+ tokens, \d+ over the limit of \d+: truncate", ran.stderr)


def test_ctrl_c_while_connecting(services: Services, empty_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never says a word
        silent.settimeout(20)
        where = ["--encoder", services.encoder, "--generator", f"127.0.0.1:{silent.getsockname()[1]}"]
        command = [sys.executable, "-m", "zrelay_client", "generate", "fox", "-o", "fox.png", *where]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        silent.accept()[0].close()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (exits.INTERRUPTED, "")
    assert err.strip() == "interrupted: no image was written, and the job is cancelled at the generator"
    assert list(Path().iterdir()) == []


def test_a_reader_that_goes_away_is_no_failure_but_a_lost_picture_is(services: Services, empty_home: Path) -> None:
    command = [sys.executable, "-m", "zrelay_client"]
    for args, code in ((["--help"], exits.OK), (["generate", "fox", "-o", "-", *QUICK_FLAGS], exits.LOCAL_FILE)):
        reader, writer = os.pipe()
        os.close(reader)
        given = [*command, *args, *(services.flags if len(args) > 1 else [])]
        ran = subprocess.run(given, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writer)
        assert ran.returncode == code, ran.stderr
        assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("fox", "--width", "100"), "error: --width: expected "),
        (("fox", "--width", "-1"), "error: --width: expected a whole number"),
        (("fox", "--count", "2", "--width", "100"), ": --width: expected "),
        (("fox", "--count", "2", "--width", "100", "--detach"), "error: --width: expected "),
        ((" ",), "error: PROMPT: expected a description of the image, got an empty prompt"),
        (("fox", "--hidden-layer", "7"), "error: --hidden-layer: expected "),
        (("fox", "--sigmas", "0.5,1"), "error: --sigmas: "),
        (("fox", "--skip-guidance-layers", "999"), "error: --skip-guidance-layers: expected "),
        (("fox", "--preview", "p/", "--preview-max-side", "9999"), "error: --preview-max-side: expected "),
    ],
)
async def test_a_refusal_names_the_flag(
    services: Services, zrelay: Zrelay, args: tuple[str, ...], message: str
) -> None:
    ran = await zrelay("generate", *args, *services.flags)
    assert ran.returncode == exits.REFUSED
    assert message in ran.stderr
    assert "spec." not in ran.stderr and "prompts[" not in ran.stderr
