"""Embeddings by file, between machines that never meet, and files that are not what they should be."""

import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from tests.helpers.jobs import PROMPT
from tests.helpers.processes import GeneratorProcess, Machine
from zrelay.v1.embeds_pb2 import PromptEmbeds
from zrelay_shared import exits, fingerprint
from zrelay_shared.tensors import crc32c


def test_two_machines_that_never_meet(here: Machine, brief: GeneratorProcess, tmp_path: Path) -> None:
    """One reaches an encoder alone, the other a generator of its own; the picture is that of the stack."""
    mac, box = Machine(tmp_path / "mac"), Machine(tmp_path / "box")
    encoder, generator = here.endpoints()["encoder"], brief.endpoint

    ran = mac.zrelay("encode", PROMPT, "-o", "red.safetensors", "--encoder", encoder)
    assert ran.returncode == 0, ran.stderr
    box.here.mkdir(parents=True)
    shutil.copy(mac.here / "red.safetensors", box.here / "red.safetensors")
    args = ["--prompt-embeds", "red.safetensors", "--seed", "3", "-o", "red.png", "--generator", generator]
    there = box.json("generate", *args)
    direct = here.json("generate", PROMPT, "--seed", "3", "-o", "red.png")
    assert there["files"][0]["pixels_sha256"] == direct["files"][0]["pixels_sha256"]
    assert there["encoder"]["relation"] == "exact"
    assert box.json("info", "red.png")["provenance"]["prompt"] == PROMPT


def embeds(here: Machine) -> tuple[dict[str, Any], bytes]:
    """Header and body of a fresh hand-over file."""
    ran = here.zrelay("encode", PROMPT, "-o", "good.safetensors", "--force")
    assert ran.returncode == 0, ran.stderr
    raw = (here.here / "good.safetensors").read_bytes()
    (here.here / "good.safetensors").unlink()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write(file: Path, header: dict[str, Any], body: bytes) -> None:
    raw = json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + body)


def with_checksum(header: dict[str, Any], body: bytes) -> dict[str, Any]:
    """The header with the right checksum of the body: damage that a checksum does not find."""
    said = json.loads(header["__metadata__"]["prompt_embeds"])
    said["segments"][0]["prompt_embeds"]["crc32c"] = crc32c(body)
    return {**header, "__metadata__": {**header["__metadata__"], "prompt_embeds": json.dumps(said)}}


def other_encoder(header: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The header with another fingerprint, whole and honest."""
    message = json_format.Parse(header["__metadata__"]["prompt_embeds"], PromptEmbeds())
    known = fingerprint.from_message(message.fingerprint)
    fields = {name: getattr(known, name) for name in known.__dataclass_fields__}
    message.fingerprint.CopyFrom(fingerprint.to_message(fingerprint.EncoderFingerprint(**{**fields, **changes})))
    said = json_format.MessageToJson(message, preserving_proto_field_name=True)
    return {**header, "__metadata__": {**header["__metadata__"], "prompt_embeds": said}}


def test_wrong_embeddings_are_refused_each_in_its_own_words(here: Machine) -> None:
    header, body = embeds(here)
    nan = struct.pack("<H", 0x7FC0) + body[2:]
    assert math.isnan(struct.unpack("<f", b"\0\0" + nan[:2])[0])
    cases = {
        "truncated": (header, body[:-2], "truncated"),
        "flipped": (header, bytes([body[0] ^ 1]) + body[1:], "checksum"),
        "nan": (with_checksum(header, nan), nan, "finite"),
        "family": (other_encoder(header, family="t5"), body, "another encoder"),
        "tokenizer": (other_encoder(header, tokenizer_digest="0" * 64), body, "tokenizer_digest"),
        "width": (other_encoder(header, width=64), body, "width"),
        "foreign": ({"prompt_embeds.0": header["prompt_embeds.0"]}, body, "metadata with format"),
    }
    for name, (changed, data, says) in cases.items():
        write(here.here / f"{name}.safetensors", changed, data)
        ran = here.zrelay("generate", "--prompt-embeds", f"{name}.safetensors", "-o", f"{name}.png")
        assert ran.returncode == exits.REFUSED, (name, ran.stderr)
        assert says in ran.stderr, (name, ran.stderr)
        assert ran.stderr.count("\n") == 1, (name, ran.stderr)
    assert not list(here.here.glob("*.png"))


def test_other_weights_of_the_family_are_used_and_reported(here: Machine) -> None:
    header, body = embeds(here)
    write(here.here / "other.safetensors", other_encoder(header, weights_digest="0" * 64), body)
    ran = here.zrelay("generate", "--prompt-embeds", "other.safetensors", "-o", "other.png")
    assert ran.returncode == 0, ran.stderr
    assert "experimental" in ran.stderr
