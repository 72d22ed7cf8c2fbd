"""`zrelay encode`: a prompt to a hand-over file."""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zrelay_client.cli._flags import PLACE, endpoint_options
from zrelay_client.cli._targets import check_file, check_folder
from zrelay_client.cli.generate import read_prompt
from zrelay_client.settings import Settings
from zrelay_shared.limits import MAX_OMNI_IMAGES

if TYPE_CHECKING:
    from zrelay_client.embeds import Embeds
    from zrelay_client.options import EncodeKeywords


@click.command("encode")
@click.argument("prompt")
@click.option(
    "-o", "--output", type=PLACE, metavar="FILE", required=True, help="The file to write, e.g. fox.safetensors."
)
@click.option("--force", is_flag=True, help="Replace the file where it exists.")
@click.option("--negative-prompt", metavar="TEXT", help="Encoded into the same file, for guidance; may be empty.")
@click.option(
    "--image-count",
    type=click.IntRange(1, MAX_OMNI_IMAGES),
    metavar="N",
    help="Leave places for N images, to be painted after with `zrelay generate --omni`. Default: none.",
)
@click.option("--text-limit", type=int, metavar="TOKENS", help="The generator's limit, where none is configured.")
@click.option("--no-prompt-in-file", is_flag=True, help="Leave the texts out of the file.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Default: 1800.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@endpoint_options("encoder", "generator")
def command(
    prompt: str,
    output: str,
    force: bool,
    negative_prompt: str | None,
    image_count: int | None,
    text_limit: int | None,
    no_prompt_in_file: bool,
    timeout: float | None,
    as_json: bool,
    encoder: str | None,
    generator: str | None,
    profile: str | None,
) -> None:
    """Encode PROMPT (`-` reads stdin) to a safetensors file that `zrelay generate --prompt-embeds` takes.

    The machine that paints then needs no encoder, and the two never need to meet. With --image-count N the file is for
    a Z-Image Omni checkpoint, and takes as many --omni images.
    """
    flags = {"encoder.endpoint": encoder, "generator.endpoint": generator, "generate.timeout_s": timeout}
    settings = Settings.load(profile, flags)
    file = Path(output)
    check_folder(file.parent)
    check_file(file, force=force)
    settings.require("encoder")
    options: EncodeKeywords = {"text_limit": text_limit, "image_count": image_count}
    embeds = asyncio.run(_encode(read_prompt(prompt), options, negative_prompt, settings))
    embeds.save(file, keep_prompt=not no_prompt_in_file)
    from zrelay_client.cli._painting import lost

    warnings = [*embeds.notes, *lost(embeds)]
    if as_json:
        said = {
            "path": str(file),
            "fingerprint": embeds.fingerprint.digest,
            "model_id": embeds.fingerprint.model_id,
            "image_count": embeds.image_count,
            "prompt_report": asdict(embeds.report),
            "warnings": warnings,
            "timings_s": {"encode": round(embeds.encode_s, 6)},
        }
        click.echo(json.dumps(said, ensure_ascii=False))
    else:
        click.echo(str(file))
        for warning in warnings:
            click.echo(f"note: {warning}", err=True)
        click.echo(f"{embeds.report.token_count} tokens, encoder {embeds.fingerprint.digest[:12]}", err=True)


async def _encode(
    prompt: str,
    options: "EncodeKeywords",
    negative_prompt: str | None,
    settings: Settings,
) -> "Embeds":
    from zrelay_client.client import AsyncClient

    # The file may be for another generator than the one that `zrelay up` runs here.
    roles = ("encoder",) if settings.config.generator.endpoint is None else ("encoder", "generator")
    async with AsyncClient.from_settings(settings, roles=roles) as client:
        return await client.encode(prompt, options, negative_prompt=negative_prompt)
