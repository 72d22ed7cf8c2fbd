"""`zrelay vision`: images to a file of embeddings, scores of texts, and prompts blended with images."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import click

from zrelay_client.cli._options import (
    PATH,
    Flags,
    OptionsCommand,
    client_of,
    force_option,
    json_option,
    load_settings,
    option,
    run,
    values_of,
)
from zrelay_client.cli._output import echo, print_json, print_table
from zrelay_shared.requests import request_setting, request_settings

if TYPE_CHECKING:
    from zrelay_client.embeds import Conditioned
    from zrelay_client.image_embeds import ImageEmbeds, ImageScores

F = TypeVar("F", bound=Callable[..., Any])
_TIMEOUT = request_setting("generate.timeout_s")
_ENCODE_SETTINGS = [*request_settings("encode_images"), _TIMEOUT]
_CONDITION_SETTINGS = [*request_settings("condition"), request_setting("generate.keep_prompt"), _TIMEOUT]
_STATES_ONLY = ("hidden_layer", "tokens", "text", "system_prompt")
"""Options of `encode` that only Qwen3-VL has."""
_images = click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMAGE...")


def _output(example: str) -> Callable[[F], F]:
    help = f"The file to write, for example {example}."
    return option("-o", "--output", heading="Output", type=PATH, metavar="FILE", required=True, help=help)


@click.group("vision")
def command() -> None:
    """Encode images (PNG, JPEG or WebP), score texts, and blend images into prompts, with the vision service."""


@command.command(
    "encode", short_help="Encode images to a file.", cls=OptionsCommand, settings=_ENCODE_SETTINGS, roles=("vision",)
)
@_images
@_output("states.safetensors")
@force_option
@option(
    "--engine",
    heading="Reference images",
    type=click.Choice(("qwen3-vl", "siglip")),
    default="qwen3-vl",
    help="qwen3-vl: states to blend into prompts; siglip: a grid for Omni.  [default: qwen3-vl]",
)
@json_option
def encode(
    images: tuple[str, ...],
    output: str,
    force: bool,
    engine: str,
    as_json: bool,
    flags: Flags,
    profile: str | None,
) -> None:
    """Encode images to a safetensors file, for `zrelay generate --reference` or `zrelay vision condition`."""
    from zrelay_client import image_embeds
    from zrelay_client.cli._files import new_file

    for name in _STATES_ONLY:
        if engine == "siglip" and flags[f"encode_images.{name}"] is not None:
            flag = request_setting(f"encode_images.{name}").flags[0]
            raise click.UsageError(f"{flag} is for --engine qwen3-vl, got --engine siglip")
    file = new_file(output, force=force)
    settings = load_settings(profile, flags, "vision")
    options = values_of(settings.config.encode_images, without=_STATES_ONLY if engine == "siglip" else ())
    name = cast(Literal["qwen3_vl", "siglip"], engine.replace("-", "_"))

    async def encode_images() -> "list[ImageEmbeds]":
        async with client_of(settings, "vision") as client:
            return await client.encode_images(images, engine=name, **options)

    encoded = run(encode_images())
    image_embeds.save(encoded, file)
    if as_json:
        values = [_values(name, one) for name, one in zip(images, encoded, strict=True)]
        print_json({"path": str(file), "images": values})
        return
    echo(str(file))
    for image, one in zip(images, encoded, strict=True):
        shape = " x ".join(map(str, one.shape))
        echo(f"{Path(image).name}: {one.engine} {shape}, fingerprint {one.fingerprint.digest[:12]}", err=True)


@command.command(
    "score",
    short_help="Score how well texts describe images.",
    cls=OptionsCommand,
    settings=[_TIMEOUT],
    roles=("vision",),
)
@_images
@option("--text", "texts", multiple=True, required=True, metavar="TEXT", help="A description; repeat it for more.")
@json_option
def score(images: tuple[str, ...], texts: tuple[str, ...], as_json: bool, flags: Flags, profile: str | None) -> None:
    """Score how well each TEXT describes each IMAGE, with SigLIP2.

    Each probability is of one pair alone: several texts may fit an image, or none. Where all probabilities are small,
    compare the cosines.
    """
    settings = load_settings(profile, flags, "vision")

    async def score_images() -> "list[ImageScores]":
        async with client_of(settings, "vision") as client:
            return await client.score_images(images, texts)

    scores = run(score_images())
    if as_json:
        rows = [
            {"image": name, "probabilities": one.probabilities, "cosines": one.cosines}
            for name, one in zip(images, scores, strict=True)
        ]
        print_json({"texts": texts, "images": rows})
        return
    table = []
    for name, one in zip(images, scores, strict=True):
        ranked = sorted(zip(one.probabilities, one.cosines, texts, strict=True), key=lambda row: -row[0])
        table += [(name, f"{probability:.3%}", f"{cosine:+.4f}", text) for probability, cosine, text in ranked]
    print_table(("IMAGE", "PROBABILITY", "COSINE", "TEXT"), table, wrap=("IMAGE", "TEXT"))


@command.command(
    "condition",
    short_help="Blend an image into an encoded prompt.",
    cls=OptionsCommand,
    settings=_CONDITION_SETTINGS,
    roles=("vision",),
)
@click.argument("embeds", type=PATH)
@click.argument("image", type=PATH)
@_output("conditioned.safetensors")
@force_option
@json_option
def condition(
    embeds: str, image: str, output: str, force: bool, as_json: bool, flags: Flags, profile: str | None
) -> None:
    """Blend IMAGE into the prompt of EMBEDS, for `zrelay generate --prompt-embeds` (experimental).

    EMBEDS is a file of `zrelay encode`. IMAGE is an image, or a file of `zrelay vision encode`.
    """
    from zrelay_client.cli._files import new_file
    from zrelay_client.embeds import Embeds

    file = new_file(output, force=force)
    settings = load_settings(profile, flags, "vision")
    options = values_of(settings.config.condition)
    prompt = Embeds.load(embeds)

    async def condition_prompt() -> "Conditioned":
        async with client_of(settings, "vision") as client:
            return await client.condition_prompt(prompt, image, **options)

    conditioned = run(condition_prompt())
    conditioned.embeds.save(file, keep_prompt=settings.config.generate.keep_prompt is not False)
    fingerprint = conditioned.embeds.fingerprint
    if as_json:
        print_json(
            {
                "path": str(file),
                "image_sha256": conditioned.image_sha256,
                "fingerprint": fingerprint.digest,
                "model_id": fingerprint.model_id,
                "modifications": fingerprint.modifications,
            }
        )
        return
    echo(str(file))
    echo(f"{', '.join(fingerprint.modifications)}; encoder {fingerprint.digest[:12]}", err=True)


def _values(name: str, one: "ImageEmbeds") -> dict[str, Any]:
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
