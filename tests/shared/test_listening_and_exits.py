"""Refusals of fields, listening addresses, exit codes, lists that are cut: small rules that people rely on."""

import platform

import pytest

from zrelay_shared import errors, exits, status
from zrelay_shared.errors import InvalidArgument, invalid, invalid_from, listed
from zrelay_shared.service import process
from zrelay_shared.service.listening import parse_listen


def test_the_refusal_of_a_field() -> None:
    error = invalid("prompts[1].text", "a text", 7)
    assert (error.message, error.field) == ("prompts[1].text: expected a text, got 7", "prompts[1].text")
    assert (error.reason, error.metadata) == ("TEXT_INVALID", {"expected": "a text", "got": "7"})
    assert invalid("spec.loras[2]", "one", 0).reason == "LORAS_INVALID"


def test_the_refusal_of_a_field_with_all_details() -> None:
    error = invalid(
        "images",
        "at most 4 tokens",
        9,
        reason="TOO_LONG",
        remedy="shorten it",
        subject="cat.safetensors",
        metadata={"expected": 4, "tokens": 9},
    )
    assert error.message == "cat.safetensors: expected at most 4 tokens, got 9; shorten it"
    assert (error.field, error.reason) == ("images", "TOO_LONG")
    assert error.metadata == {"expected": "4", "got": "9", "tokens": "9"}


@pytest.mark.parametrize("text", ["expected one, got none", "sigmas: expected one, got none"])
def test_the_refusal_of_a_field_from_the_error_of_a_function(text: str) -> None:
    error = invalid_from("spec.sampling.sigmas", ValueError(text), remedy="send one")
    assert error.message == "spec.sampling.sigmas: expected one, got none; send one"
    assert (error.field, error.reason) == ("spec.sampling.sigmas", "SIGMAS_INVALID")
    assert invalid_from("image", ValueError(text), reason="IMAGE_ASPECT").reason == "IMAGE_ASPECT"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("127.0.0.1:7501", "127.0.0.1:7501"),
        ("7501", "127.0.0.1:7501"),
        (":0", "127.0.0.1:0"),
        ("localhost:65535", "localhost:65535"),
        ("[::1]:7501", "[::1]:7501"),
        ("127.8.9.1:1", "127.8.9.1:1"),
    ],
)
def test_loopback_may_be_listened_on(text: str, shown: str) -> None:
    address = parse_listen(text)
    assert str(address) == shown and address.loopback


@pytest.mark.parametrize("text", ["0.0.0.0:7501", "[::]:7501", "192.168.1.5:1", "gpu-box:7503", "10.0.0.1:0"])
def test_beyond_loopback_only_on_demand(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"run `zrelay pair` .* SSH tunnel, .*--insecure-listen") as refusal:
        parse_listen(text)
    assert (refusal.value.reason, refusal.value.field) == ("LISTEN_INSECURE", "listen")
    assert str(parse_listen(text, insecure=True)) == str(parse_listen(text, secured=True)) == text


@pytest.mark.parametrize(
    "text", ["", "host", "host:", "127.0.0.1:65536", "127.0.0.1:-1", "1:2:3", "::1", "a b:1", "x:²"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        parse_listen(text, insecure=True)
    assert refusal.value.reason == "LISTEN_INVALID" and repr(text) in refusal.value.message


EXIT_CODES = {
    "InvalidArgument": 3,
    "PayloadCorrupt": 3,
    "FailedPrecondition": 3,
    "EncoderMismatch": 3,
    "LoraIncompatible": 3,
    "CheckpointError": 5,
    "ResourceExhausted": 6,
    "QueueFull": 6,
    "QuotaExceeded": 6,
    "OutOfMemory": 3,
    "MessageTooLarge": 3,
    "FeatureMissing": 3,
    "Unavailable": 4,
    "ModelLoading": 4,
    "Draining": 4,
    "Unauthenticated": 3,
    "PermissionDenied": 3,
    "NotFound": 3,
    "IdempotencyConflict": 3,
    "DeadlineExceeded": 7,
    "Cancelled": 130,
    "InternalError": 1,
}


def test_which_refusal_ends_in_which_exit_code() -> None:
    assert {kind.__name__: exits.code_of(kind("x")) for kind in status.CLASSES} == EXIT_CODES
    assert exits.code_of(errors.ZrelayError("x")) == exits.REFUSED
    assert (exits.OK, exits.BUG, exits.USAGE) == (0, 1, 2)


def test_a_long_list_is_cut_at_20() -> None:
    names = [f"n{i}" for i in range(20)]
    assert listed(names) == ", ".join(names)
    assert listed([*names, "n20", "n21"]) == ", ".join(names) + " (and 2 more)"
    assert listed(("a",)) == "a" and listed([]) == ""


def test_reasons_are_upper_snake_and_name_one_class_each() -> None:
    kinds = status.CLASSES
    assert len({kind.default_reason for kind in kinds}) == len(kinds) == len(EXIT_CODES)
    assert len(status.BY_REASON) == len(kinds) + sum(len(kind.further_reasons) for kind in kinds)
    assert all(reason.replace("_", "").isupper() for reason in status.BY_REASON)
    retried = {kind.__name__ for kind in kinds if kind.default_retry_after_s is not None}
    assert retried == {"QueueFull", "QuotaExceeded", "ModelLoading", "Draining"}


def test_large_buffers_stay_on_the_heap_where_there_is_glibc() -> None:
    assert process.keep_large_buffers() is (platform.libc_ver()[0] == "glibc")


@pytest.mark.parametrize(
    ("listen", "host"),
    [
        ("7501", "127.0.0.1"),
        ("localhost:7501", "127.0.0.1"),
        ("0.0.0.0:7501", "127.0.0.1"),
        ("[::]:7501", "::1"),
        ("127.0.0.2:7501", "127.0.0.2"),
        ("192.168.1.5:7501", "192.168.1.5"),
        ("box.example:7501", "box.example"),
    ],
)
def test_a_machine_reaches_its_own_address(listen: str, host: str) -> None:
    assert parse_listen(listen, insecure=True).local_host == host
