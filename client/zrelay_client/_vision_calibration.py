"""Calibration: a corpus of prompts through an encoder service, and what its embeddings look like."""

import hashlib
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from zrelay_client._vision_numbers import Gatherer
from zrelay_client._vision_rows import prompt_rows
from zrelay_client.client import AsyncClient
from zrelay_shared.errors import FailedPrecondition, InvalidArgument
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.limits import MAX_MESSAGE_BYTES
from zrelay_shared.reference_file import ReferenceSet

_BUNDLED = "calibration_prompts.txt"
_MOST_BYTES, _MOST_PROMPTS, _LEAST_PROMPTS = 16 * 1024 * 1024, 20_000, 2
_TEMPLATE_TOKENS = 64
"""More than the chat template adds to a prompt."""
_USUAL_WIDTH = 2560


@dataclass(frozen=True, slots=True)
class Corpus:
    """Prompts, and what they are called: a name and the beginning of the digest of their file."""

    name: str
    prompts: tuple[str, ...]


def read_corpus(path: str | os.PathLike[str] | None = None) -> Corpus:
    """A corpus file: UTF-8, one prompt a line; empty lines and those that begin with # do not count. None: the bundled
    one. Raises OSError, InvalidArgument (CORPUS_INVALID)."""
    if path is None:
        name, data = "zrelay", resources.files("zrelay_client").joinpath(_BUNDLED).read_bytes()
    else:
        name = Path(path).name
        with Path(path).open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise _bad(name, f"at most {_MOST_BYTES} bytes", "more")
    try:
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise _bad(name, "UTF-8", f"bytes that are not at {error.start}") from error
    prompts = tuple(line for line in lines if line and not line.startswith("#"))
    if not _LEAST_PROMPTS <= len(prompts) <= _MOST_PROMPTS:
        raise _bad(name, f"{_LEAST_PROMPTS} to {_MOST_PROMPTS} prompts, one a line", str(len(prompts)))
    return Corpus(f"{name} sha256:{hashlib.sha256(data).hexdigest()[:12]}", prompts)


async def calibrate(
    client: AsyncClient, corpus: Corpus, hidden_layer: int | None, progress: Callable[[int, int], None]
) -> ReferenceSet:
    """Statistics of the embeddings that the client's encoder gives the corpus, at its own layer or another.

    `progress` hears of (prompts done, all of them). Raises what `encode_batch` raises, and FailedPrecondition
    (ENCODER_CHANGED) where the encoder became another one in between.
    """
    said = await client.encoder_info()
    width = said.fingerprint.width if said.fingerprint is not None else _USUAL_WIDTH
    gatherer: Gatherer | None = None
    made_by: EncoderFingerprint | None = None
    done = 0
    for batch in batches(corpus.prompts, said.max_prompts or 1, MAX_MESSAGE_BYTES // 2 // (4 * width)):
        for embeds in await client.encode_batch(batch, hidden_layer=hidden_layer, dtype="f32"):
            if made_by is not None and embeds.fingerprint.digest != made_by.digest:
                raise FailedPrecondition(
                    f"the encoder changed while it was calibrated (fingerprint {made_by.digest[:12]}, now "
                    f"{embeds.fingerprint.digest[:12]}): calibrate again, with one encoder alone",
                    reason="ENCODER_CHANGED",
                    metadata={"expected": made_by.digest, "got": embeds.fingerprint.digest},
                )
            made_by = embeds.fingerprint
            gatherer = gatherer or Gatherer(made_by.width)
            for rows in prompt_rows(embeds):
                gatherer.add(rows)
        done += len(batch)
        progress(done, len(corpus.prompts))
    if gatherer is None or made_by is None:
        raise ValueError("corpus: expected at least one prompt, got none")
    return _set_of(gatherer, made_by, corpus)


def batches(prompts: Sequence[str], most: int, tokens: int) -> Iterator[list[str]]:
    """Consecutive prompts, at most `most` and surely no more than `tokens` tokens together; a longer one goes alone."""
    batch: list[str] = []
    held = 0
    for prompt in prompts:
        size = len(prompt.encode("utf-8", "replace")) + _TEMPLATE_TOKENS  # a token is at least a byte
        if batch and (len(batch) == most or held + size > tokens):
            yield batch
            batch, held = [], 0
        batch.append(prompt)
        held += size
    if batch:
        yield batch


def _set_of(gatherer: Gatherer, made_by: EncoderFingerprint, corpus: Corpus) -> ReferenceSet:
    gatherer.finish()
    if not gatherer.rest.count:
        raise FailedPrecondition(
            "every prompt came back as a single token: that is no encoder to calibrate", reason="CALIBRATION_EMPTY"
        )
    whole = gatherer.rest.with_also(gatherer.first)
    return ReferenceSet(
        fingerprint=made_by,
        mean=gatherer.rest.mean,
        std=gatherer.rest.std,
        mean_with_first=whole.mean,
        std_with_first=whole.std,
        token_rms=array("f", sorted(gatherer.token_rms)),
        prompts=len(corpus.prompts),
        tokens=gatherer.rest.count,
        corpus=corpus.name,
    )


def _bad(name: str, expected: str, got: str) -> InvalidArgument:
    return InvalidArgument(
        f"{name}: expected {expected}, got {got}", field="corpus", reason="CORPUS_INVALID", metadata={"got": got}
    )
