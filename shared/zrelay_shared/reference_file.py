"""Reference statistics of an encoder's prompt embeddings as a safetensors file.

`zrelay calibrate` writes it; the vision service and `zrelay analyze` read it. The encoder's fingerprint is in the
header. docs/reference/files.md has the specification. The module needs no torch or numpy: numbers are arrays of floats.
"""

import math
import shlex
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format

from zrelay.v1.embeds_pb2 import EncoderFingerprint as FingerprintMessage
from zrelay_shared import fingerprint as fingerprints
from zrelay_shared import safetensors_file
from zrelay_shared.errors import InvalidArgument, ZrelayError, invalid
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.safetensors_file import FileTensor, SafetensorsFile
from zrelay_shared.safetensors_header import SafetensorsError

FORMAT = "zrelay.reference_statistics.v1"
SUFFIX = ".safetensors"
MAX_BYTES = 64 * 1024 * 1024
_PER_DIMENSION = ("mean", "std", "mean_with_first", "std_with_first")


@dataclass(frozen=True, slots=True)
class ReferenceSet:
    """Statistics of an encoder's embeddings of a corpus of prompts.

    Attributes:
        fingerprint: The encoder.
        mean, std: Population statistics per dimension, float32 [width], over all tokens but the first of each prompt.
            The first token is an attention sink, whose few massive dimensions would dominate the statistics.
        mean_with_first, std_with_first: The same over all tokens.
        token_rms: Root mean square of each token but the first ones, ascending.
        prompts: Number of prompts.
        tokens: Number of tokens of mean and std.
        corpus: Name of the corpus.
    """

    fingerprint: EncoderFingerprint
    mean: "array[float]"
    std: "array[float]"
    mean_with_first: "array[float]"
    std_with_first: "array[float]"
    token_rms: "array[float]"
    prompts: int
    tokens: int
    corpus: str

    def __post_init__(self) -> None:
        """Checks that the parts fit together. Raises ValueError."""
        for name in _PER_DIMENSION:
            if len(getattr(self, name)) != self.fingerprint.width:
                got = len(getattr(self, name))
                raise ValueError(f"{name}: expected {self.fingerprint.width} dimensions, got {got}")
            if not all(map(math.isfinite, getattr(self, name))):
                raise ValueError(f"{name}: expected finite values, got NaN or infinity")
        if any(value < 0 for name in ("std", "std_with_first") for value in getattr(self, name)):
            raise ValueError("std: expected deviations of at least 0, got a negative one")
        if self.tokens < 1 or len(self.token_rms) != self.tokens or not all(map(math.isfinite, self.token_rms)):
            raise ValueError(f"token_rms: expected {max(1, self.tokens)} finite values, got {len(self.token_rms)}")

    @property
    def median_token_rms(self) -> float:
        """The median of `token_rms`."""
        return self.token_rms[len(self.token_rms) // 2]


def write(path: Path, found: ReferenceSet) -> None:
    """Writes a set to a file, atomically. Raises OSError."""
    message = fingerprints.to_message(found.fingerprint)
    metadata = {
        "format": FORMAT,
        "encoder": json_format.MessageToJson(message, indent=None, preserving_proto_field_name=True),
        "prompts": str(found.prompts),
        "tokens": str(found.tokens),
        "corpus": found.corpus,
    }
    tensors = [(name, _entry(getattr(found, name))) for name in (*_PER_DIMENSION, "token_rms")]
    safetensors_file.write(path, tensors, metadata)


def read(path: Path) -> ReferenceSet:
    """Reads a file of `write`. Raises OSError and InvalidArgument (REFERENCE_FILE_INVALID)."""
    try:
        content = safetensors_file.read(path, max_bytes=MAX_BYTES)
    except SafetensorsError as error:
        raise _refusal(path, "a safetensors file of `zrelay calibrate`", f"one that {error}") from error
    if content.metadata.get("format") != FORMAT:
        raise _refusal(path, f"metadata with format {FORMAT!r}", "a safetensors file without it")
    try:
        message = safetensors_file.parse_message(content.metadata["encoder"], FingerprintMessage())
        return ReferenceSet(
            fingerprint=fingerprints.from_message(message, path="encoder"),
            mean=_floats(content, "mean"),
            std=_floats(content, "std"),
            mean_with_first=_floats(content, "mean_with_first"),
            std_with_first=_floats(content, "std_with_first"),
            token_rms=_floats(content, "token_rms"),
            prompts=int(content.metadata["prompts"]),
            tokens=int(content.metadata["tokens"]),
            corpus=content.metadata.get("corpus", ""),
        )
    except KeyError as error:
        raise _refusal(path, f"{error.args[0]!r} in it", "none") from error
    except (ValueError, ZrelayError) as error:
        raise _refusal(path, "a file of `zrelay calibrate`", f"a damaged one ({error})") from error


def _entry(values: "array[float]") -> FileTensor:
    little = array("f", values)
    if sys.byteorder == "big":
        little.byteswap()
    return FileTensor("F32", (len(little),), memoryview(little.tobytes()))


def _floats(content: SafetensorsFile, name: str) -> "array[float]":
    entry = content.tensors[name]
    if entry.dtype != "F32" or len(entry.shape) != 1:
        raise ValueError(f"{name}: expected F32 of one dimension, got {entry.dtype} {list(entry.shape)}")
    values = array("f")
    values.frombytes(entry.data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _refusal(path: Path, expected: str, got: str) -> InvalidArgument:
    return invalid(
        "references",
        expected,
        got,
        reason="REFERENCE_FILE_INVALID",
        remedy=f"make it again with `zrelay calibrate -o {shlex.quote(path.name)}`",
        subject=path.name,
    )
