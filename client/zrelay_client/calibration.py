"""Calibration: encodes a corpus of prompts and computes the statistics of the embeddings.

Needs numpy (`pip install 'zrelay[analysis]'`). `zrelay calibrate` is the command.
"""

import hashlib
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from zrelay_client.client import AsyncClient
from zrelay_shared import texts
from zrelay_shared.errors import FailedPrecondition, InvalidArgument
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.limits import MAX_MESSAGE_BYTES
from zrelay_shared.reference_file import ReferenceSet
from zrelay_shared.statistics import EmbedsAccumulator, prompt_rows

_BUNDLED = "calibration_prompts.txt"
_MOST_BYTES, _MOST_PROMPTS, _LEAST_PROMPTS = 16 * 1024 * 1024, 20_000, 2
_TEMPLATE_TOKENS = 64
"""Upper bound of the tokens that the chat template adds to a prompt."""
_USUAL_WIDTH = 2560


@dataclass(frozen=True, slots=True)
class Corpus:
    """Prompts of a corpus file.

    Attributes:
        name: Name of the file and the first 12 digits of its SHA-256.
        prompts: The prompts, in the order of the file.
    """

    name: str
    prompts: tuple[str, ...]


def read_corpus(path: str | os.PathLike[str] | None = None) -> Corpus:
    """Reads a corpus file: UTF-8, one prompt a line. Empty lines and lines that begin with # are skipped.

    Args:
        path: The file. None: the bundled corpus.

    Raises:
        OSError: The file cannot be read.
        InvalidArgument: CORPUS_INVALID, it is too large, not UTF-8, or has too few or too many prompts.
    """
    if path is None:
        name, data = "zrelay", resources.files("zrelay_client").joinpath(_BUNDLED).read_bytes()
    else:
        name = Path(path).name
        with Path(path).open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise _invalid(name, f"at most {_MOST_BYTES} bytes", "more")
    try:
        lines = [line.strip() for line in texts.decode(data, name).split("\n")]
    except texts.NotText as error:
        raise InvalidArgument(f"{error}", field="corpus", reason="CORPUS_INVALID") from error
    prompts = tuple(line for line in lines if line and not line.startswith("#"))
    if not _LEAST_PROMPTS <= len(prompts) <= _MOST_PROMPTS:
        raise _invalid(name, f"{_LEAST_PROMPTS} to {_MOST_PROMPTS} prompts, one a line", str(len(prompts)))
    return Corpus(f"{name} sha256:{hashlib.sha256(data).hexdigest()[:12]}", prompts)


async def calibrate(
    client: AsyncClient, corpus: Corpus, hidden_layer: int | None, progress: Callable[[int, int], None]
) -> ReferenceSet:
    """Encodes a corpus and returns the statistics of its embeddings.

    Args:
        client: A client with an encoder.
        corpus: The prompts.
        hidden_layer: The hidden layer, negative from the end. None: the encoder's default.
        progress: Called after each batch with the number of encoded prompts and the number of all prompts.

    Raises:
        FailedPrecondition: ENCODER_CHANGED, the encoder was replaced in the meantime; CALIBRATION_EMPTY, every prompt
            has a single token.
        ZrelayError: As `AsyncClient.encode_batch`.
    """
    info = await client.encoder_info()
    width = info.fingerprint.width if info.fingerprint is not None else _USUAL_WIDTH
    accumulator: EmbedsAccumulator | None = None
    fingerprint: EncoderFingerprint | None = None
    done = 0
    for batch in batches(corpus.prompts, info.max_prompts or 1, MAX_MESSAGE_BYTES // 2 // (4 * width)):
        for embeds in await client.encode_batch(batch, hidden_layer=hidden_layer, dtype="f32"):
            if fingerprint is not None and embeds.fingerprint.digest != fingerprint.digest:
                raise FailedPrecondition(
                    f"the encoder changed while it was calibrated (fingerprint {fingerprint.digest[:12]}, now "
                    f"{embeds.fingerprint.digest[:12]}): calibrate again, with one encoder alone",
                    reason="ENCODER_CHANGED",
                    metadata={"expected": fingerprint.digest, "got": embeds.fingerprint.digest},
                )
            fingerprint = embeds.fingerprint
            accumulator = accumulator or EmbedsAccumulator(fingerprint.width)
            for rows in prompt_rows(embeds.parcel, embeds.parcel.message.prompt.prompt_embeds):
                accumulator.add(rows)
        done += len(batch)
        progress(done, len(corpus.prompts))
    if accumulator is None or fingerprint is None:
        raise ValueError("corpus: expected at least one prompt, got none")
    return _reference_set(accumulator, fingerprint, corpus)


def batches(prompts: Sequence[str], most: int, tokens: int) -> Iterator[list[str]]:
    """Splits prompts into consecutive batches of at most `most` prompts and at most `tokens` tokens.

    Tokens are not counted but bounded: a token is at least one byte. A prompt over the bound is a batch of its own.
    """
    batch: list[str] = []
    held = 0
    for prompt in prompts:
        size = len(prompt.encode("utf-8", "replace")) + _TEMPLATE_TOKENS
        if batch and (len(batch) == most or held + size > tokens):
            yield batch
            batch, held = [], 0
        batch.append(prompt)
        held += size
    if batch:
        yield batch


def _reference_set(accumulator: EmbedsAccumulator, fingerprint: EncoderFingerprint, corpus: Corpus) -> ReferenceSet:
    rest, every = accumulator.rest, accumulator.all_tokens
    if not rest.count:
        raise FailedPrecondition(
            "every prompt came back as a single token: that is no encoder to calibrate", reason="CALIBRATION_EMPTY"
        )
    return ReferenceSet(
        fingerprint=fingerprint,
        mean=array("f", rest.mean.tolist()),
        std=array("f", rest.std.tolist()),
        mean_with_first=array("f", every.mean.tolist()),
        std_with_first=array("f", every.std.tolist()),
        token_rms=array("f", sorted(accumulator.token_rms.tolist())),
        prompts=len(corpus.prompts),
        tokens=rest.count,
        corpus=corpus.name,
    )


def _invalid(name: str, expected: str, got: str) -> InvalidArgument:
    return InvalidArgument(
        f"{name}: expected {expected}, got {got}", field="corpus", reason="CORPUS_INVALID", metadata={"got": got}
    )
