"""Encoder identity: golden digests, the way over the wire, and every row of the relation table."""

import dataclasses
from typing import Any

import pytest

from zrelay.v1.embeds_pb2 import EncoderFingerprint as Message
from zrelay.v1.embeds_pb2 import EncoderRelation, ThinkMode
from zrelay_shared import fingerprint as fp
from zrelay_shared import vision_fingerprint
from zrelay_shared.errors import EncoderMismatch, InvalidArgument
from zrelay_shared.fingerprint import EncoderFingerprint, compare, from_message, to_message
from zrelay_shared.vision_fingerprint import VisionFingerprint

USUAL = EncoderFingerprint(
    family="qwen3",
    width=2560,
    model_id="Z-Image-Turbo",
    weights_digest="11" * 32,
    tokenizer_digest="22" * 32,
    chat_template_digest="33" * 32,
    compute_dtype="bfloat16",
    backend="torch-cpu",
)
ODD = EncoderFingerprint(
    family="qwen3",
    width=2560,
    hidden_layer=0,
    layer_weights=((-2, 0.3), (-3, 0.7)),
    think_mode="content",
    quantization="nf4",
    modifications=("steering",),
)
OTHER: dict[str, Any] = {
    "family": "llama",
    "width": 1024,
    "tokenizer_digest": "aa" * 32,
    "weights_digest": "bb" * 32,
    "configuration_digest": "dd" * 32,
    "chat_template_digest": "cc" * 32,
    "hidden_layer": -3,
    "before_final_norm": False,
    "layer_weights": ((-2, 1.0),),
    "think_mode": "empty",
    "quantization": "int8",
    "modifications": ("conditioning",),
    "compute_dtype": "float32",
    "backend": "mlx",
}


def test_golden_digests() -> None:
    assert USUAL.canonical.startswith(b'{"backend":"torch-cpu","before_final_norm":true,"chat_template_digest":"3333')
    assert USUAL.digest == "0466036db1476bd7af251ad2ae8a704e110804c6e13545ecba8bf57827da9656"
    assert b'"layer_weights":[[-2,"3e99999a"],[-3,"3f333333"]],"modifications":["steering"]' in ODD.canonical
    assert ODD.digest == "1afdec318b4d9a7d359e68720f9bf2ac3554f15e3782717ddb9770b54659d04c"


def test_the_name_of_the_model_is_not_part_of_the_digest() -> None:
    assert dataclasses.replace(USUAL, model_id="elsewhere").digest == USUAL.digest


@pytest.mark.parametrize("name", OTHER)
def test_every_other_field_is(name: str) -> None:
    assert dataclasses.replace(USUAL, **{name: OTHER[name]}).digest != USUAL.digest


@pytest.mark.parametrize("fingerprint", [USUAL, ODD, dataclasses.replace(USUAL, **OTHER)])
def test_survives_the_wire(fingerprint: EncoderFingerprint) -> None:
    arrived = Message.FromString(to_message(fingerprint).SerializeToString())
    assert from_message(arrived) == fingerprint
    assert arrived.digest == fingerprint.message_digest


@pytest.mark.parametrize(
    "damage",
    [
        {"family": ""},
        {"digest": ""},
        {"digest": "00" * 32},
        {"width": 1},
        {"hidden_layer": -4},
        {"think_mode": ThinkMode.THINK_MODE_EMPTY},
        {"think_mode": 9},
    ],
)
def test_refuses_a_fingerprint_that_is_not_its_own(damage: dict[str, Any]) -> None:
    message = to_message(ODD)
    if any(damage.values()):
        message.MergeFrom(Message(**damage))
    else:
        for name in damage:
            message.ClearField(name)
    with pytest.raises(EncoderMismatch) as refusal:
        from_message(message, path="spec.prompt.fingerprint")
    assert refusal.value.reason == "FINGERPRINT_INVALID"
    assert "pass PromptEmbeds on unchanged" in refusal.value.message


def test_the_configuration_is_part_of_the_digest_only_where_it_is_known() -> None:
    known = dataclasses.replace(USUAL, configuration_digest="dd" * 32)
    assert known.digest == "7180ffd39656ded6e5dd448c4e77f8a4d3b1cf28865ea15c82c59f96af4d47e9"
    assert b'"configuration_digest"' not in USUAL.canonical and known.digest != USUAL.digest
    assert known.message_digest == USUAL.digest == USUAL.message_digest
    message = to_message(known)
    assert message.digest == USUAL.digest, "a release that lacks the field can verify it"
    message.digest = known.digest
    assert from_message(message) == known, "a later release may send the complete digest"
    message.ClearField("configuration_digest")
    with pytest.raises(EncoderMismatch):
        from_message(message)


def test_an_unknown_configuration_is_unverified_and_no_obstacle_between_releases() -> None:
    known = dataclasses.replace(USUAL, configuration_digest="dd" * 32)
    for expected, actual in ((known, USUAL), (USUAL, known)):
        assert compare(expected, actual).relation == "unverified"
        assert compare(*fp.comparable(expected, actual)).relation == "exact"
    other = dataclasses.replace(USUAL, configuration_digest="ee" * 32)
    assert compare(*fp.comparable(known, other)).relation == "experimental"


def test_every_field_has_a_row_in_the_relation_table() -> None:
    names = {field.name for field in dataclasses.fields(EncoderFingerprint)}
    assert set(fp.RELATION_OF_DIFFERENCE) == names - {"model_id"} == set(OTHER)
    assert set(fp.RELATIONS.values()) == set(EncoderRelation.values()) - {0}
    assert set(fp.THINK_MODES.values()) == set(ThinkMode.values()) - {0}


def test_the_same_is_exact_wherever_it_lies() -> None:
    assert compare(USUAL, dataclasses.replace(USUAL, model_id="elsewhere")) == fp.EncoderComparison("exact")


def test_a_difference_of_modifications_lists_them() -> None:
    actual = dataclasses.replace(USUAL, modifications=("conditioning", "alpha=0.5"))
    assert compare(USUAL, actual).differences == ("modifications: conditioning, alpha=0.5, here none",)


@pytest.mark.parametrize(("name", "meaning"), fp.RELATION_OF_DIFFERENCE.items())
def test_one_difference(name: str, meaning: str) -> None:
    usual = dataclasses.replace(USUAL, configuration_digest="44" * 32)
    actual = dataclasses.replace(usual, **{name: OTHER[name]})
    if meaning != "refused":
        verdict = compare(usual, actual)
        assert verdict.relation == meaning
        assert len(verdict.differences) == 1 and verdict.differences[0].startswith(f"{name}: ")
        return
    with pytest.raises(EncoderMismatch) as refusal:
        compare(usual, actual)
    error = refusal.value
    assert error.reason == "ENCODER_MISMATCH"
    assert error.metadata["field"] == name
    assert error.metadata["expected"] == str(getattr(USUAL, name)) and error.metadata["got"] == str(OTHER[name])
    assert "zrelay serve encoder --model" in error.message


def test_the_worst_difference_decides() -> None:
    both = dataclasses.replace(USUAL, backend="mlx", hidden_layer=-3)
    assert compare(USUAL, both).relation == "experimental"
    assert [text.split(":")[0] for text in compare(USUAL, both).differences] == ["hidden_layer", "backend"]


def test_what_the_generator_does_not_know_is_unverified() -> None:
    width_only = EncoderFingerprint(family="qwen3", width=2560)
    verdict = compare(width_only, USUAL)
    assert verdict.relation == "unverified"
    assert "weights_digest: 111111111111..., here not known" in verdict.differences
    assert compare(width_only, dataclasses.replace(USUAL, hidden_layer=-3)).relation == "experimental"
    no_tokenizer = dataclasses.replace(USUAL, tokenizer_digest="")
    assert compare(no_tokenizer, USUAL).relation == "unverified"
    no_dtype = dataclasses.replace(USUAL, compute_dtype="", backend="")
    assert compare(no_dtype, USUAL).relation == "exact"
    with pytest.raises(EncoderMismatch):
        compare(width_only, dataclasses.replace(USUAL, width=1024))


def test_an_encoder_without_digests_is_unverified() -> None:
    verdict = compare(USUAL, EncoderFingerprint(family="qwen3", width=2560))
    assert verdict.relation == "unverified"
    assert "weights_digest: not known, here 111111111111..." in verdict.differences
    with pytest.raises(EncoderMismatch):
        compare(USUAL, EncoderFingerprint(family="qwen3", width=1024))


def test_a_vision_fingerprint_has_its_configuration_only_where_it_is_known() -> None:
    usual = VisionFingerprint("siglip", "siglip2", 1152, weights_digest="11" * 32, compute_dtype="float32")
    known = dataclasses.replace(usual, configuration_digest="dd" * 32)
    assert b"configuration_digest" not in usual.canonical and known.digest != usual.digest
    message = vision_fingerprint.to_message(known)
    assert message.digest == usual.digest == vision_fingerprint.to_message(usual).digest
    assert vision_fingerprint.from_message(message, path="grid") == known
    assert vision_fingerprint.complete_digest(message) == known.digest
    message.digest = "55" * 32
    assert vision_fingerprint.complete_digest(message) == "55" * 32
    with pytest.raises(InvalidArgument):
        vision_fingerprint.from_message(message, path="grid")
