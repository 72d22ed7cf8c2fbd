"""`zrelay calibrate`: computes the statistics of an encoder's embeddings, which the vision service needs."""

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
    from zrelay_client.calibration import Corpus
    from zrelay_shared.reference_file import ReferenceSet


@click.command("calibrate")
@click.option("--corpus", type=PLACE, metavar="FILE", help="Prompts, one a line. Default: the 248 bundled prompts.")
@click.option("--layer", type=int, metavar="N", help="Hidden layer, negative from the end. Default: the encoder's.")
@click.option(
    "-o",
    "--output",
    type=PLACE,
    metavar="FILE",
    help="Default: a file named after the encoder in references/ of the state folder, where `zrelay up` finds it.",
)
@click.option("--force", is_flag=True, help="Replace the file where it exists.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
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
    """Encode a corpus of prompts and save the statistics of the embeddings, per dimension.

    The vision service needs the set of a prompt's encoder for normalisation per dimension and for outlier masks. Pass
    it the folder with `zrelay serve vision -- --references FOLDER`. Needs numpy: pip install 'zrelay[analysis]'.
    """
    folder = _default_folder() if output is None else Path(output).parent
    if output is None:
        folder.mkdir(parents=True, exist_ok=True)
    else:
        check_file(Path(output), force=force)
    check_folder(folder)
    settings = Settings.load(profile, {"encoder.endpoint": encoder})
    settings.require("encoder")
    from zrelay_client.calibration import read_corpus
    from zrelay_shared import reference_file

    console, started = Console(quiet=quiet), time.monotonic()
    reference = asyncio.run(_calibrate(settings, read_corpus(corpus), layer, console))
    file = Path(output) if output is not None else _default_file(reference)
    reference_file.write(file, reference)
    if as_json:
        printed = {
            "path": str(file),
            "fingerprint": reference.fingerprint.digest,
            "model_id": reference.fingerprint.model_id,
            "hidden_layer": reference.fingerprint.hidden_layer,
            "width": reference.fingerprint.width,
            "prompts": reference.prompts,
            "tokens": reference.tokens,
            "token_rms": reference.median_token_rms,
            "corpus": reference.corpus,
        }
        click.echo(json.dumps(printed, ensure_ascii=False))
        return
    click.echo(str(file))
    console.line(
        f"{reference.prompts} prompts, {reference.tokens} tokens of {reference.fingerprint.width} dimensions at layer "
        f"{reference.fingerprint.hidden_layer} in {spoken_seconds(time.monotonic() - started)}; encoder "
        f"{reference.fingerprint.digest[:12]}, median RMS of a token {reference.median_token_rms:.4g}"
    )
    console.line("the vision service reads its --references folder when it starts")


def _default_folder() -> Path:
    return paths.state_dir() / "references"


def _default_file(reference: "ReferenceSet") -> Path:
    """Returns one file per encoder and layer, so that a new calibration replaces the previous one."""
    name = f"{reference.fingerprint.digest[:16]}{reference.fingerprint.hidden_layer}.safetensors"
    return _default_folder() / name


async def _calibrate(settings: Settings, corpus: "Corpus", layer: int | None, console: Console) -> "ReferenceSet":
    from zrelay_client.calibration import calibrate
    from zrelay_client.client import AsyncClient

    async with AsyncClient.from_settings(settings, roles=("encoder",)) as client:
        try:
            return await calibrate(
                client, corpus, layer, lambda done, total: console.status(f"{done} of {total} prompts")
            )
        finally:
            console.clear()
