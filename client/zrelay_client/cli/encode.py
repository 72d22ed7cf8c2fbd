"""`zrelay encode`: a prompt to a file of embeddings."""

from typing import TYPE_CHECKING

import click

from zrelay_client.cli._options import (
    PATH,
    Flags,
    Integer,
    OptionsCommand,
    client_of,
    force_option,
    json_option,
    load_settings,
    option,
    read_prompt,
    run,
    values_of,
)
from zrelay_client.cli._output import echo, print_json
from zrelay_shared.limits import MAX_OMNI_IMAGES
from zrelay_shared.requests import request_setting, request_settings

if TYPE_CHECKING:
    from zrelay_client.embeds import Embeds

SETTINGS = [*request_settings("encode"), request_setting("generate.keep_prompt"), request_setting("generate.timeout_s")]


@click.command("encode", cls=OptionsCommand, settings=SETTINGS, roles=("encoder", "generator"))
@click.argument("prompt")
@option(
    "-o",
    "--output",
    heading="Output",
    type=PATH,
    metavar="FILE",
    required=True,
    help="The file to write, for example fox.safetensors.",
)
@force_option
@option(
    "--negative-prompt",
    heading="Prompt",
    metavar="TEXT",
    help="Encoded into the same file, for guidance; may be empty.  [default: none]",
)
@option(
    "--image-count",
    heading="Prompt",
    type=Integer(1, MAX_OMNI_IMAGES),
    metavar="N",
    help="Leave places for N images of `zrelay generate --omni`, at most 8.  [default: none]",
)
@json_option
def command(
    prompt: str,
    output: str,
    force: bool,
    negative_prompt: str | None,
    image_count: int | None,
    as_json: bool,
    flags: Flags,
    profile: str | None,
) -> None:
    """Encode PROMPT (`-` reads it from standard input) to a safetensors file for `zrelay generate --prompt-embeds`.

    The machine that generates then needs no encoder, and the two need no connection. With --image-count N the file is
    for a Z-Image Omni checkpoint and as many --omni images.
    """
    from dataclasses import asdict

    from zrelay_client.cli._files import new_file
    from zrelay_client.cli._running import long_prompt_warnings

    file = new_file(output, force=force)
    settings = load_settings(profile, flags, "encoder")
    options = values_of(settings.config.encode)
    if image_count is not None:
        options["image_count"] = image_count
    # The limit is that of a configured generator. One that `zrelay up` started here is not the one the file is for.
    roles = ("encoder",) if settings.config.generator.endpoint is None else ("encoder", "generator")
    text = read_prompt(prompt)

    async def encode() -> "Embeds":
        async with client_of(settings, *roles) as client:
            return await client.encode(text, negative_prompt=negative_prompt, **options)

    embeds = run(encode())
    embeds.save(file, keep_prompt=settings.config.generate.keep_prompt is not False)
    warnings = [*embeds.notes, *long_prompt_warnings(embeds)]
    if as_json:
        print_json(
            {
                "path": str(file),
                "fingerprint": embeds.fingerprint.digest,
                "model_id": embeds.fingerprint.model_id,
                "image_count": embeds.image_count,
                "prompt_report": asdict(embeds.report),
                "warnings": warnings,
                "timings_s": {"encode": round(embeds.encode_s, 6)},
            }
        )
        return
    echo(str(file))
    for warning in warnings:
        echo(f"note: {warning}", err=True)
    echo(f"{embeds.report.token_count} tokens, encoder {embeds.fingerprint.digest[:12]}", err=True)
