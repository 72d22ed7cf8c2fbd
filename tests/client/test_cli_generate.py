"""`zrelay generate` and `encode`: names, formats, what is refused before anything is computed, what is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from zrelay_shared import exits


def flags(fakes: Any) -> list[str]:
    return ["--encoder", fakes.endpoints["encoder"], "--generator", fakes.endpoints["generator"]]


async def test_a_name_made_of_prompt_and_seed_that_never_overwrites(fakes: Any, zrelay: Any) -> None:
    first = await zrelay("generate", "A Red Fox, naïve!", "--seed", "7", *flags(fakes))
    second = await zrelay("generate", "A Red Fox, naïve!", "--seed", "7", *flags(fakes))
    assert (first.code, second.code) == (0, 0)
    assert (first.out, second.out) == ("a-red-fox-naive-7.png\n", "a-red-fox-naive-7-2.png\n")
    assert Path("a-red-fox-naive-7.png").read_bytes() == Path("a-red-fox-naive-7-2.png").read_bytes()
    for hop in ("connect", "encode", "queue", "prepare", "denoise 500 ms", "decode", "transfer", "write"):
        assert hop in first.err


async def test_json_says_everything_once(fakes: Any, zrelay: Any) -> None:
    ran = await zrelay("generate", "-", "-o", "fox.webp", "--json", "-q", *flags(fakes), stdin="a réd fox\n".encode())
    said = json.loads(ran.out)
    assert ran.err == ""
    assert said["files"][0]["path"] == "fox.webp"
    assert said["files"][0]["format"] == "webp"
    assert "data" not in said["files"][0]
    assert said["encoder"]["relation"] == "exact"
    assert set(said["timings_s"]) >= {"connect", "encode", "denoise", "transfer", "write", "total"}
    assert fakes.encoder.requests[0].prompts[0].text == "a réd fox"
    assert Path("fox.webp").exists()


async def test_several_images_get_numbers(fakes: Any, zrelay: Any) -> None:
    ran = await zrelay("generate", "fox", "-o", "fox.jpg", "--num-images", "3", *flags(fakes))
    assert ran.out.split() == ["fox-1.jpg", "fox-2.jpg", "fox-3.jpg"]
    ran = await zrelay("generate", "fox", "-o", "fox.jpg", "--num-images", "3", *flags(fakes))
    assert ran.code == exits.LOCAL_FILE
    assert "fox-1.jpg: exists already" in ran.err
    assert (await zrelay("generate", "fox", "-o", "fox.jpg", "--num-images", "3", "--force", *flags(fakes))).code == 0


async def test_a_folder_as_output(fakes: Any, zrelay: Any) -> None:
    Path("pictures").mkdir()
    ran = await zrelay("generate", "fox", "-o", "pictures", "--format", "jpeg", *flags(fakes))
    assert ran.out == "pictures/fox-42.jpg\n"


async def test_stdout(fakes: Any, zrelay: Any) -> None:
    ran = await zrelay("generate", "fox", "-o", "-", *flags(fakes))
    assert ran.out.endswith("42")
    assert list(Path().iterdir()) == []


async def test_previews_in_a_folder_or_in_one_file(fakes: Any, zrelay: Any) -> None:
    await zrelay("generate", "fox", "-o", "a.png", "--preview", "previews", *flags(fakes))
    assert sorted(path.name for path in Path("previews").iterdir())[-1] == "image-1-step-003.jpg"
    await zrelay("generate", "fox", "-o", "b.png", "--preview", "now.jpg", *flags(fakes))
    assert Path("now.jpg").read_bytes() == b"\xff\xd8preview"


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["fox", "-o", "none/fox.png"], exits.LOCAL_FILE, "none: there is no such folder"),
        (["fox", "-o", "taken.png"], exits.LOCAL_FILE, "taken.png: exists already: pass --force"),
        (["fox", "-o", "fox.bmp"], exits.USAGE, "expected .png, .jpg, .jpeg, .webp, got .bmp"),
        (["fox", "-o", "fox.png", "--format", "webp"], exits.USAGE, "is a png file, and --format says webp"),
        (["fox", "-o", "-", "--num-images", "2"], exits.USAGE, "takes one picture"),
        (["fox", "-o", "-", "--json"], exits.USAGE, "both want stdout"),
        (["fox", "--size", "big"], exits.USAGE, "expected WIDTHxHEIGHT"),
        (["fox", "--size", "64x64", "--width", "64"], exits.USAGE, "--size says both"),
        ([], exits.USAGE, "what shall be painted?"),
        (["fox", "--prompt-embeds", "x.safetensors"], exits.USAGE, "leave them out"),
        (["--prompt-embeds", "none.safetensors"], exits.LOCAL_FILE, "none.safetensors: No such file"),
        (["--prompt-embeds", "taken.png"], exits.REFUSED, "expected a safetensors file"),
        (["fox", "--preview", "none/now.jpg"], exits.LOCAL_FILE, "none: there is no such folder"),
        (["fox", "--profile", "home"], exits.REFUSED, "no profile 'home'"),
        (["fox", "--generator", "http://box:7503"], exits.REFUSED, "generator: expected an endpoint"),
        (["-"], exits.REFUSED, "expected a prompt, got an empty one"),
        (["fox", "--width", "100"], exits.REFUSED, "width: expected a multiple of 16"),
        (["fox", "--width", "-16"], exits.REFUSED, "width: expected a whole number"),
        (["fox", "--width", "wide"], exits.USAGE, "'wide' is not a valid integer"),
    ],
)
async def test_refusals_in_one_line_and_nothing_written(
    fakes: Any, zrelay: Any, args: list[str], code: int, says: str
) -> None:
    Path("taken.png").write_text("mine")
    endpoints = flags(fakes) if "--generator" not in args else flags(fakes)[:2]
    ran = await zrelay("generate", *args, *endpoints)
    assert ran.code == code
    assert says in ran.err
    assert "Traceback" not in ran.err
    assert [path.name for path in Path().iterdir()] == ["taken.png"]
    assert Path("taken.png").read_text() == "mine"


async def test_nothing_configured_says_what_to_do(zrelay: Any) -> None:
    ran = await zrelay("generate", "fox")
    assert ran.code == exits.REFUSED
    assert "`zrelay up --detach`" in ran.err
    assert "--encoder HOST:PORT --generator HOST:PORT" in ran.err


async def test_nobody_there(fakes: Any, zrelay: Any) -> None:
    ran = await zrelay("generate", "fox", "--encoder", "127.0.0.1:1", "--generator", fakes.endpoints["generator"])
    assert ran.code == exits.UNREACHABLE
    assert ran.err.startswith("error: cannot reach the encoder service at 127.0.0.1:1")
    assert ran.err.count("\n") == 1


async def test_the_time_is_up(fakes: Any, zrelay: Any) -> None:
    fakes.generator.step_s = 5.0
    ran = await zrelay("generate", "fox", "--timeout", "0.5", *flags(fakes))
    assert ran.code == exits.TIMEOUT
    assert list(Path().iterdir()) == []


async def test_settings_from_file_and_environment(
    fakes: Any, zrelay: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text(
        f'[profile.lan.encoder]\nendpoint = "{fakes.endpoints["encoder"]}"\n'
        "[generate]\nnum_inference_steps = 2\nshift = 1.5\n"
    )
    monkeypatch.setenv("ZRELAY_GENERATOR", fakes.endpoints["generator"])
    monkeypatch.setenv("ZRELAY_GENERATE_SHIFT", "2.5")
    ran = await zrelay("generate", "fox", "--profile", "lan", "--json")
    assert json.loads(ran.out)["sampling"]["num_inference_steps"] == 2
    assert fakes.generator.requests[0].spec.sampling.shift == 2.5


async def test_the_prompt_stays_out_of_the_file_when_asked(fakes: Any, zrelay: Any) -> None:
    await zrelay("generate", "fox", "--no-prompt-in-file", *flags(fakes))
    assert not fakes.generator.requests[0].spec.provenance.HasField("prompt")


async def test_encode_writes_what_generate_takes(fakes: Any, zrelay: Any) -> None:
    encoder, generator = flags(fakes)[:2], flags(fakes)[2:]
    ran = await zrelay("encode", "a red fox", "-o", "fox.safetensors", "--negative-prompt", "a dog", *encoder)
    assert ran.out == "fox.safetensors\n"
    assert "3 tokens" in ran.err
    ran = await zrelay("encode", "a red fox", "-o", "fox.safetensors", *encoder)
    assert ran.code == exits.LOCAL_FILE
    there = await zrelay("generate", "--prompt-embeds", "fox.safetensors", "--json", *generator)
    direct = await zrelay("generate", "a red fox", "--negative-prompt", "a dog", "--json", *flags(fakes))
    there_files, direct_files = json.loads(there.out)["files"], json.loads(direct.out)["files"]
    assert there_files[0]["pixels_sha256"] == direct_files[0]["pixels_sha256"]
    assert there_files[0]["path"] == "fox-42.png"


async def test_long_prompts_are_told(fakes: Any, zrelay: Any) -> None:
    ran = await zrelay("generate", " ".join(["fox"] * 80), "-o", "fox.png", *flags(fakes))
    assert "note: the prompt has 80 tokens, 3 over the limit of 77" in ran.err
