"""`zrelay calibrate`: statistics of an encoder's embeddings, with which the vision service normalizes images."""

import time
from pathlib import Path
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
    quiet_option,
    run,
)
from zrelay_client.cli._output import Console, format_seconds, print_json
from zrelay_shared import paths

if TYPE_CHECKING:
    from zrelay_client.calibration import Corpus
    from zrelay_client.settings import Settings
    from zrelay_shared.reference_file import ReferenceSet


@click.command("calibrate", cls=OptionsCommand, roles=("encoder",))
@option("--corpus", type=PATH, metavar="FILE", help="Prompts, one on each line.  [default: 248 prompts of the package]")
@option("--layer", type=Integer(), metavar="N", help="Hidden layer, counted from the end.  [default: the encoder's]")
@option(
    "-o",
    "--output",
    heading="Output",
    type=PATH,
    metavar="FILE",
    help="The file to write.  [default: a file named after the encoder in references/ of the state folder, where "
    "`zrelay up` finds it]",
)
@force_option
@quiet_option
@json_option
def command(
    corpus: str | None,
    layer: int | None,
    output: str | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    flags: Flags,
    profile: str | None,
) -> None:
    """Encode a corpus of prompts, and write statistics of every dimension of the embeddings to a file.

    The vision service uses the file that belongs to the encoder of a prompt: normalization per dimension and outlier
    masks need it. It reads the files of the folder `zrelay serve vision --references FOLDER` when it starts. Needs
    numpy: pip install 'zrelay[analysis]'.
    """
    from zrelay_client.cli._files import new_file

    chosen = None if output is None else new_file(output, force=force)
    if chosen is None:
        _check_usual_folder()
    settings = load_settings(profile, flags, "encoder")
    from zrelay_client.calibration import read_corpus
    from zrelay_shared import private, reference_file

    with Console(quiet=quiet) as console:
        started = time.monotonic()
        reference = run(_calibrate(settings, read_corpus(corpus), layer, console))
        file = chosen or _usual_file(reference)
        if chosen is None:
            private.make_folder(file.parent, paths.STATE_REMEDY)
        reference_file.write(file, reference)
        fingerprint = reference.fingerprint
        if as_json:
            print_json(
                {
                    "path": str(file),
                    "fingerprint": fingerprint.digest,
                    "model_id": fingerprint.model_id,
                    "hidden_layer": fingerprint.hidden_layer,
                    "width": fingerprint.width,
                    "prompts": reference.prompts,
                    "tokens": reference.tokens,
                    "token_rms": reference.median_token_rms,
                    "corpus": reference.corpus,
                }
            )
            return
        console.result(str(file))
        console.message(
            f"{reference.prompts} prompts, {reference.tokens} tokens of {fingerprint.width} dimensions at layer "
            f"{fingerprint.hidden_layer} in {format_seconds(time.monotonic() - started)}; encoder "
            f"{fingerprint.digest[:12]}, median RMS of a token {reference.median_token_rms:.4g}"
        )
        console.message("a vision service that runs reads the file after a restart")


def _usual_folder() -> Path:
    return paths.state_dir() / "references"


def _check_usual_folder() -> None:
    """Checks that the usual folder can be written. Creates nothing. Raises OSError."""
    from zrelay_client.cli._files import check_new_folder

    try:
        check_new_folder(_usual_folder())
    except OSError as error:
        message = f"{error.strerror}; name a file with --output, or {paths.STATE_REMEDY}"
        raise OSError(error.errno, message, error.filename) from None


def _usual_file(reference: "ReferenceSet") -> Path:
    """Returns the file of an encoder and layer; calibrating again replaces it."""
    name = f"{reference.fingerprint.digest[:16]}{reference.fingerprint.hidden_layer}.safetensors"
    return _usual_folder() / name


async def _calibrate(settings: "Settings", corpus: "Corpus", layer: int | None, console: Console) -> "ReferenceSet":
    from zrelay_client.calibration import calibrate

    def on_progress(done: int, total: int) -> None:
        console.status("encoding prompts", completed=done, total=total, note=f"{done}/{total}")

    async with client_of(settings, "encoder") as client:
        return await calibrate(client, corpus, layer, on_progress)
