"""`zrelay calibrate`: what an encoder's embeddings look like, for the vision service to hold images against."""

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zrelay_client.cli._console import Console, spoken_seconds
from zrelay_client.cli._flags import PLACE, endpoint_options
from zrelay_client.cli._targets import check_file, check_folder
from zrelay_client.settings import Settings
from zrelay_shared import paths

if TYPE_CHECKING:
    from zrelay_client._vision_calibration import Corpus
    from zrelay_shared.reference_file import ReferenceSet


@click.command("calibrate")
@click.option("--corpus", type=PLACE, metavar="FILE", help="Prompts, one a line. Default: some 250 that are bundled.")
@click.option("--layer", type=int, metavar="N", help="Hidden layer, from the end. Default: the encoder's own.")
@click.option(
    "-o",
    "--output",
    type=PLACE,
    metavar="FILE",
    help="Default: a file of the encoder's name in references/ of the state folder, where `zrelay up` looks for it.",
)
@click.option("--force", is_flag=True, help="Replace the file where it exists.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@endpoint_options("encoder")
def command(
    corpus: str | None,
    layer: int | None,
    output: str | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    encoder: str | None,
    profile: str | None,
) -> None:
    """Run a corpus of prompts through the encoder and keep statistics of its embeddings, dimension by dimension.

    The vision service uses the set that belongs to a prompt's encoder: normalisations per dimension and outlier masks
    need it. Give it the folder with `zrelay serve vision -- --references FOLDER`.
    """
    folder = _usual_folder() if output is None else Path(output).parent
    if output is None:
        folder.mkdir(parents=True, exist_ok=True)
    else:
        check_file(Path(output), force=force)
    check_folder(folder)
    settings = Settings.load(profile, {"encoder.endpoint": encoder})
    settings.require("encoder")
    from zrelay_client._vision_calibration import read_corpus
    from zrelay_shared import reference_file

    console, started = Console(quiet=quiet), time.monotonic()
    made = asyncio.run(_calibrate(settings, read_corpus(corpus), layer, console))
    file = Path(output) if output is not None else _usual_place(made)
    reference_file.write(file, made)
    if as_json:
        said = {
            "path": str(file),
            "fingerprint": made.fingerprint.digest,
            "model_id": made.fingerprint.model_id,
            "hidden_layer": made.fingerprint.hidden_layer,
            "width": made.fingerprint.width,
            "prompts": made.prompts,
            "tokens": made.tokens,
            "token_rms": made.median_token_rms,
            "corpus": made.corpus,
        }
        click.echo(json.dumps(said, ensure_ascii=False))
        return
    click.echo(str(file))
    console.line(
        f"{made.prompts} prompts, {made.tokens} tokens of {made.fingerprint.width} dimensions at layer "
        f"{made.fingerprint.hidden_layer} in {spoken_seconds(time.monotonic() - started)}; encoder "
        f"{made.fingerprint.digest[:12]}, median RMS of a token {made.median_token_rms:.4g}"
    )
    console.line("a vision service reads the sets of its --references folder when it starts")


def _usual_folder() -> Path:
    return paths.state_dir() / "references"


def _usual_place(made: "ReferenceSet") -> Path:
    """One file for each encoder and layer: calibrating again replaces it."""
    name = f"{made.fingerprint.digest[:16]}{made.fingerprint.hidden_layer}.safetensors"
    return _usual_folder() / name


async def _calibrate(settings: Settings, corpus: "Corpus", layer: int | None, console: Console) -> "ReferenceSet":
    from zrelay_client._vision_calibration import calibrate
    from zrelay_client.client import AsyncClient

    async with AsyncClient.from_settings(settings, roles=("encoder",)) as client:
        try:
            return await calibrate(
                client, corpus, layer, lambda done, all_of_them: console.status(f"{done} of {all_of_them} prompts")
            )
        finally:
            console.clear()
