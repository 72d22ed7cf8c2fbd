"""`zrelay vision`: images to embeddings in a file, and how well texts describe images."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from zrelay_client.cli._flags import PLACE, endpoint_options
from zrelay_client.cli._targets import check_file, check_folder
from zrelay_client.settings import Settings

if TYPE_CHECKING:
    from zrelay_client.image_embeds import ImageEmbeds, ImageScores
    from zrelay_client.options import EncodeImagesKeywords, Engine

_ENGINES = ("qwen3-vl", "siglip")
_TOKENS = ("full", "text-only", "image-only", "image-no-markers")
_TIMEOUT = click.option("--timeout", type=float, metavar="SECONDS", help="Default: 1800.")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")


@click.group("vision")
def command() -> None:
    """Ask the vision service about images: PNG, JPEG or WebP."""


@command.command("encode")
@click.argument("images", nargs=-1, required=True, type=PLACE, metavar="IMAGE...")
@click.option(
    "-o", "--output", type=PLACE, metavar="FILE", required=True, help="The file to write, e.g. states.safetensors."
)
@click.option("--force", is_flag=True, help="Replace the file where it exists.")
@click.option(
    "--engine",
    type=click.Choice(_ENGINES),
    default="qwen3-vl",
    show_default=True,
    help="qwen3-vl: states to condition prompts with; siglip: a grid for Omni.",
)
@click.option("--layer", type=int, metavar="N", help="Hidden layer of Qwen3-VL, from the end. Default: the server's.")
@click.option("--tokens", type=click.Choice(_TOKENS), help="Which of Qwen3-VL's tokens to keep. Default: full.")
@click.option("--text", metavar="TEXT", help="Text after the image, for Qwen3-VL.")
@click.option("--system-prompt", metavar="TEXT", help="A system turn before it, for Qwen3-VL.")
@click.option(
    "--target-area",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Width times height of the picture to be painted: larger references are resized to it.",
)
@_TIMEOUT
@_JSON
@endpoint_options("vision")
def encode(
    images: tuple[str, ...],
    output: str,
    force: bool,
    engine: str,
    layer: int | None,
    tokens: str | None,
    text: str | None,
    system_prompt: str | None,
    target_area: int | None,
    timeout: float | None,
    as_json: bool,
    vision: str | None,
    profile: str | None,
) -> None:
    """Encode images to a safetensors file, to blend into prompts later or elsewhere."""
    given = {"--layer": layer, "--tokens": tokens, "--text": text, "--system-prompt": system_prompt}
    if engine == "siglip" and (strange := [flag for flag, value in given.items() if value is not None]):
        raise click.UsageError(f"{strange[0]} is for --engine qwen3-vl, got --engine siglip")
    file = Path(output)
    check_folder(file.parent)
    check_file(file, force=force)
    settings = _settings(vision, profile, timeout)
    options: dict[str, Any] = {"hidden_layer": layer, "text": text, "system_prompt": system_prompt}
    options |= {"tokens": None if tokens is None else tokens.replace("-", "_"), "target_area": target_area}
    chosen = cast("Engine", engine.replace("-", "_"))
    found = asyncio.run(_encode(images, chosen, cast("EncodeImagesKeywords", options), settings))
    from zrelay_client import image_embeds

    image_embeds.save(found, file)
    if as_json:
        said = {"path": str(file), "images": [_told(name, one) for name, one in zip(images, found, strict=True)]}
        click.echo(json.dumps(said, ensure_ascii=False))
        return
    click.echo(str(file))
    for name, one in zip(images, found, strict=True):
        shape = " x ".join(map(str, one.shape))
        click.echo(f"{Path(name).name}: {one.engine} {shape}, fingerprint {one.fingerprint.digest[:12]}", err=True)


@command.command("score")
@click.argument("images", nargs=-1, required=True, type=PLACE, metavar="IMAGE...")
@click.option("--text", "texts", multiple=True, required=True, metavar="TEXT", help="A description; repeat for more.")
@_TIMEOUT
@_JSON
@endpoint_options("vision")
def score(
    images: tuple[str, ...],
    texts: tuple[str, ...],
    timeout: float | None,
    as_json: bool,
    vision: str | None,
    profile: str | None,
) -> None:
    """Score how well each TEXT describes each IMAGE, by SigLIP2.

    A probability is of one pair on its own: several texts may fit, or none. Cosines compare where probabilities are
    all small.
    """
    found = asyncio.run(_score(images, texts, _settings(vision, profile, timeout)))
    if as_json:
        rows = [
            {"image": name, "probabilities": one.probabilities, "cosines": one.cosines}
            for name, one in zip(images, found, strict=True)
        ]
        click.echo(json.dumps({"texts": texts, "images": rows}, ensure_ascii=False))
        return
    for name, one in zip(images, found, strict=True):
        click.echo(str(name))
        ranked = sorted(zip(one.probabilities, one.cosines, texts, strict=True), key=lambda row: -row[0])
        for probability, cosine, text in ranked:
            click.echo(f"  {probability:9.3%}  {cosine:+.4f}  {text}")


def _settings(vision: str | None, profile: str | None, timeout: float | None) -> Settings:
    """Loads the settings, which name a vision service."""
    settings = Settings.load(profile, {"vision.endpoint": vision, "generate.timeout_s": timeout})
    settings.require("vision")
    return settings


def _told(name: str, one: "ImageEmbeds") -> dict[str, Any]:
    return {
        "image": name,
        "image_sha256": one.image_sha256,
        "engine": one.engine,
        "shape": one.shape,
        "tokens": one.tokens,
        "hidden_layer": one.fingerprint.hidden_layer,
        "model_id": one.fingerprint.model_id,
        "fingerprint": one.fingerprint.digest,
    }


async def _encode(
    images: Sequence[str], engine: "Engine", options: "EncodeImagesKeywords", settings: Settings
) -> "list[ImageEmbeds]":
    from zrelay_client.client import AsyncClient

    async with AsyncClient.from_settings(settings, roles=("vision",)) as client:
        return await client.encode_images(images, options, engine=engine)


async def _score(images: Sequence[str], texts: Sequence[str], settings: Settings) -> "list[ImageScores]":
    from zrelay_client.client import AsyncClient

    async with AsyncClient.from_settings(settings, roles=("vision",)) as client:
        return await client.score_images(images, texts)
