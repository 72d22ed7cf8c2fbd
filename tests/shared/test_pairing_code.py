"""The codes of pairing: what is written can be read, and a code that was copied wrongly is refused."""

import ipaddress
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zrelay_shared.security import pairing_code
from zrelay_shared.security.pairing_code import PairingCode

CODE = PairingCode("192.168.1.5", 50050, bytes(range(16)), b"secret!!")
HOSTS = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda number: str(ipaddress.IPv4Address(number))),
    st.integers(0, 2**128 - 1).map(lambda number: str(ipaddress.IPv6Address(number))),
    st.text("abcxyz.-", max_size=40).map(lambda middle: f"b{middle}0"),
)
CODES = st.builds(
    PairingCode, HOSTS, st.integers(1, 65535), st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8)
)


@given(CODES)
def test_what_is_written_can_be_read(code: PairingCode) -> None:
    assert pairing_code.parse(str(code)) == code


@given(CODES, st.data())
def test_capitals_spaces_and_hyphens_do_not_matter(code: PairingCode, data: st.DataObject) -> None:
    text = str(code)
    place = data.draw(st.integers(0, len(text)))
    assert pairing_code.parse(f" {text[:place].upper()}-\n {text[place:]}\r\n") == code


def test_a_code_has_about_60_characters() -> None:
    assert len(str(CODE)) == 56
    assert re.fullmatch(r"zr1[a-z2-7]{53}", str(CODE))


def test_every_change_of_one_character_is_refused() -> None:
    text = str(CODE)
    for place, right in enumerate(text):
        for wrong in string.ascii_lowercase + string.digits:
            if wrong != right:
                with pytest.raises(ValueError):
                    pairing_code.parse(text[:place] + wrong + text[place + 1 :])


@given(CODES, st.data())
def test_a_change_of_one_character_of_any_code_is_refused(code: PairingCode, data: st.DataObject) -> None:
    text = str(code)
    place = data.draw(st.integers(0, len(text) - 1))
    wrong = data.draw(st.sampled_from(string.ascii_lowercase + string.digits).filter(lambda char: char != text[place]))
    with pytest.raises(ValueError):
        pairing_code.parse(text[:place] + wrong + text[place + 1 :])


def test_two_neighbours_that_are_exchanged_are_refused() -> None:
    text = str(CODE)
    for place in range(len(text) - 1):
        first, second = text[place], text[place + 1]
        if first != second:
            with pytest.raises(ValueError):
                pairing_code.parse(text[:place] + second + first + text[place + 2 :])


def test_a_part_of_a_code_is_refused() -> None:
    text = str(CODE)
    for length in range(len(text)):
        with pytest.raises(ValueError):
            pairing_code.parse(text[:length])


@given(st.text(max_size=500))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        pairing_code.parse(text)
    with pytest.raises(ValueError):
        pairing_code.parse(f"zr1{text}")


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("", 1),
        ("-a", 1),
        ("a b", 1),
        ("a\n", 1),
        ("ä", 1),
        ("x" * 128, 1),
        ("fe80::1%eth0", 1),
        ("0::1", 1),
        ("a", 0),
        ("a", 65536),
    ],
)
def test_a_host_or_port_that_no_code_can_hold_is_refused(host: str, port: int) -> None:
    with pytest.raises(ValueError):
        PairingCode(host, port, bytes(16), bytes(8))


def test_secrets_are_not_in_texts_about_codes() -> None:
    assert "secret" not in repr(CODE)
    for wrong in ("1234 567", "12345678 9", f"{CODE}a"):
        for parse in (pairing_code.parse, pairing_code.parse_short):
            with pytest.raises(ValueError) as caught:
                parse(wrong)
            assert wrong[:8] not in str(caught.value)


def test_codes_are_random() -> None:
    assert len({pairing_code.new_secret() for _ in range(100)}) == 100
    digits = {pairing_code.new_short() for _ in range(100)}
    assert len(digits) == 100 and all(re.fullmatch(r"[0-9]{8}", each) for each in digits)


@pytest.mark.parametrize("text", ["12345678", "1234 5678", "1234-5678", " 12345678\n"])
def test_a_short_code_is_eight_digits(text: str) -> None:
    assert pairing_code.parse_short(text) == "12345678"


@pytest.mark.parametrize("text", ["", "1234567", "123456789", "1234567a", "１２３４５６７８", "12 345678"])
def test_other_short_codes_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        pairing_code.parse_short(text)


def test_a_code_matches_one_certificate() -> None:
    assert CODE.matches(bytes(range(32)))
    assert not CODE.matches(bytes(32)) and not CODE.matches(b"")
