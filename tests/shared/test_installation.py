"""The security folder of an installation: what it holds, who may read it, and how running services see its changes."""

import json
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from filelock import FileLock

from tests.helpers.certificates import Clock, authority, issued
from tests.helpers.refusals import refused
from zrelay_shared.errors import FailedPrecondition, NotFound
from zrelay_shared.security import certificates, installation
from zrelay_shared.security.installation import Installation
from zrelay_shared.security.permissions import ALL, CALLER, Permission

NAMES = ("box.example", "192.168.1.5")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def box(tmp_path: Path, clock: Clock) -> Installation:
    found = Installation(tmp_path / "security", clock)
    assert found.prepare("box", NAMES)
    return found


def request(name: str = "mac") -> bytes:
    return certificates.new_request(certificates.new_key(), name)


def join(box: Installation, name: str = "mac", permissions: frozenset[Permission] = CALLER) -> str:
    """Issues a certificate, and returns its serial number."""
    return certificates.describe(box.issue(request(name), name, permissions)).serial


def test_a_prepared_folder(box: Installation) -> None:
    key, certificate = box.server_pair
    assert box.prepared and certificates.belong_together(certificate, key)
    assert certificates.is_issued_by(certificate, box.authority_certificate)
    assert certificates.describe(certificate).server_names == NAMES
    assert certificates.is_authority(box.authority_certificate)


def test_every_file_is_private(box: Installation) -> None:
    join(box)
    box.new_token("ci", CALLER)
    assert stat.S_IMODE(box.folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in box.folder.iterdir()}
    pems = {"authority.pem", "authority.key", "server.pem", "server.key"}
    assert pems | {"members.json", "tokens.json"} <= modes.keys() and set(modes.values()) == {0o600}


def test_preparing_again_makes_nothing(box: Installation) -> None:
    before = {path.name: path.read_bytes() for path in box.folder.iterdir()}
    assert not box.prepare("box", NAMES[:1])
    assert {path.name: path.read_bytes() for path in box.folder.iterdir()} == before


def damage_nothing(box: Installation) -> None:
    """The certificate alone lacks a name."""


def remove_key(box: Installation) -> None:
    (box.folder / "server.key").unlink()


def damage_certificate(box: Installation) -> None:
    (box.folder / "server.pem").write_bytes(b"nothing")


def exchange_key(box: Installation) -> None:
    (box.folder / "server.key").write_bytes(certificates.new_key())


def exchange_certificate(box: Installation) -> None:
    issued("box", server_names=[*NAMES, "new.example"], by=authority("foreign")).write(box.folder, "server")


@pytest.mark.parametrize("damage", [damage_nothing, remove_key, damage_certificate, exchange_key, exchange_certificate])
def test_a_server_certificate_that_does_not_serve_is_made_again(
    box: Installation, damage: Callable[[Installation], None]
) -> None:
    before = box.authority_certificate
    damage(box)
    assert box.prepare("box", [*NAMES, "new.example"])
    key, certificate = box.server_pair
    assert box.authority_certificate == before and certificates.is_issued_by(certificate, before)
    assert certificates.belong_together(certificate, key)
    assert {*NAMES, "new.example"} <= set(certificates.describe(certificate).server_names)


def test_a_server_certificate_is_made_again_before_it_ends(box: Installation, clock: Clock) -> None:
    clock.advance(days=334)
    assert not box.prepare("box", NAMES)
    clock.advance(days=2)
    assert box.prepare("box", NAMES)
    assert certificates.describe(box.server_pair[1]).not_after == clock.now + timedelta(days=365)


def test_a_lost_authority_key_makes_a_new_authority(box: Installation) -> None:
    before = box.authority_certificate
    (box.folder / "authority.key").unlink()
    assert box.prepare("box", NAMES)
    assert box.authority_certificate != before
    assert certificates.is_issued_by(box.server_pair[1], box.authority_certificate)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    empty = Installation(tmp_path / "security")
    assert not empty.prepared and empty.members() == () and empty.tokens() == ()
    assert empty.member_of("1") is None and empty.token_of("zrt_x") is None
    for call in (lambda: empty.server_pair, lambda: empty.authority_certificate, lambda: empty.issue(request(), "mac")):
        refused(call, FailedPrecondition, reason="NOT_PAIRED", match="is missing: run `zrelay pair`")


def test_a_member(box: Installation, clock: Clock) -> None:
    serial = join(box, "mac", frozenset({Permission.ENCODE}))
    member = box.member_of(serial)
    assert member is not None and (member.name, member.permissions, member.revoked) == ("mac", ("encode",), "")
    assert (member.issued, member.expires) == ("2026-03-01T12:00:00+00:00", "2027-03-01T12:00:00+00:00")
    assert box.member_of("0") is None


def test_a_renewed_certificate_replaces_the_earlier_one(box: Installation) -> None:
    first, other, second = join(box), join(box, "laptop"), join(box)
    revoked = {serial: box.member_of(serial).revoked for serial in (first, other, second)}  # type: ignore[union-attr]
    assert revoked == {first: "2026-03-01T12:00:00+00:00", other: "", second: ""}


def test_a_running_reader_sees_a_revocation(box: Installation, clock: Clock) -> None:
    reader = Installation(box.folder, clock)
    serial, token = join(box), box.new_token("mac", CALLER)
    assert reader.member_of(serial) is not None and reader.token_of(token) is not None
    clock.advance(hours=1)
    assert box.revoke("mac") == 2
    found = reader.member_of(serial)
    assert found is not None and found.revoked == "2026-03-01T13:00:00+00:00" and reader.token_of(token) is None


def test_a_file_that_did_not_change_is_not_read_again(box: Installation) -> None:
    join(box)
    assert box.members() is box.members()


def test_revoking_a_stranger_lists_the_members(box: Installation) -> None:
    join(box), join(box, "laptop"), box.new_token("ci", CALLER)
    box.revoke("laptop")
    refused(lambda: box.revoke("laptop"), NotFound, reason="MEMBER_UNKNOWN", match="'laptop'; there are: ci, mac$")


@pytest.mark.parametrize("name", ["members.json", "tokens.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"{}",
        b'{"version": 2, "records": []}',
        b'{"version": 1, "records": {"a": 1}}',
        b'{"version": 1, "records": [{"name": "mac"}]}',
        b'{"version": 1, "records": [{"permissions": ["fly"]}]}',
        b'{"version": 1, "records": [{"permissions": [], "name": "mac", "serial": 7, "sha256": 7}]}',
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b" " * (2 << 20), id="large"),
    ],
)
def test_a_damaged_file_admits_nobody(box: Installation, name: str, content: bytes) -> None:
    serial, token = join(box), box.new_token("ci", CALLER)
    (box.folder / name).write_bytes(content)
    reader = Installation(box.folder)
    read = (lambda: reader.member_of(serial)) if name == "members.json" else (lambda: reader.token_of(token))
    refused(read, FailedPrecondition, reason="SECURITY_FILE_DAMAGED", match=f"{name} is damaged")


@pytest.mark.parametrize(("field", "value"), [("expires", "soon"), ("sha256", 7), ("expires", None), ("extra", "x")])
def test_a_record_with_a_wrong_value_is_damage(box: Installation, field: str, value: object) -> None:
    box.new_token("ci", CALLER)
    path = box.folder / "tokens.json"
    content = json.loads(path.read_bytes())
    content["records"][0][field] = value
    path.write_text(json.dumps(content))
    refused(box.tokens, FailedPrecondition, reason="SECURITY_FILE_DAMAGED", match=r"tokens\.json is damaged")


def test_changes_at_once_lose_nothing(box: Installation) -> None:
    with ThreadPoolExecutor(4) as pool:
        serials = list(pool.map(lambda number: join(Installation(box.folder), f"m{number}"), range(8)))
    assert sorted(member.serial for member in box.members()) == sorted(serials)


def test_a_folder_that_another_process_changes(box: Installation) -> None:
    hasty = Installation(box.folder, lock_s=0.05)
    with FileLock(box.folder / "lock"):
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(lambda: join(hasty))
            refused(waiting.result, FailedPrecondition, reason="SECURITY_FOLDER_LOCKED")
        assert box.members() == ()  # readers do not wait
    assert join(box)


def test_only_hashes_of_tokens_are_kept(box: Installation) -> None:
    token = box.new_token("ci", CALLER)
    assert token.startswith("zrt_") and len(token) == 47
    files = b"".join(path.read_bytes() for path in box.folder.iterdir())
    assert token.encode() not in files and token[4:].encode() not in files
    assert token not in repr(box.tokens()) and len(box.tokens()[0].sha256) == 64


def test_the_owner_of_a_token(box: Installation) -> None:
    first, second = box.new_token("ci", frozenset({Permission.GENERATE})), box.new_token("anna", ALL)
    found = box.token_of(first)
    assert found is not None and (found.name, found.permissions, found.expires) == ("ci", ("generate",), "")
    other = box.token_of(second)
    assert other is not None and set(other.permissions) == set(ALL)


@pytest.mark.parametrize("wrong", ["", "zrt_", "zrt_" + "a" * 43, "ä", "\ud800", "x" * 129])
def test_what_is_nobodys_token(box: Installation, wrong: str) -> None:
    token = box.new_token("ci", CALLER)
    for text in (wrong, token[:-1], token + " ", token.upper()):
        assert box.token_of(text) is None


def test_a_token_is_replaced_with_an_overlap(box: Installation, clock: Clock) -> None:
    old = box.new_token("ci", CALLER)
    new = box.new_token("ci", CALLER, overlap=timedelta(hours=2))
    record, newer = box.token_of(old), box.token_of(new)
    assert record is not None and record.expires == "2026-03-01T14:00:00+00:00"
    assert newer is not None and newer.expires == ""
    box.new_token("ci", CALLER, overlap=timedelta(hours=9))
    again = box.token_of(old)
    assert again is not None and again.expires == record.expires, "a later change does not extend it"
    clock.advance(hours=3)
    box.new_token("anna", CALLER)
    assert box.token_of(old) is None, "what has ended is removed with the next change"
    assert box.token_of(new) is not None


def test_a_token_that_is_replaced_without_an_overlap_ends_at_once(box: Installation, clock: Clock) -> None:
    old = box.new_token("ci", CALLER)
    box.new_token("ci", CALLER)
    record = box.token_of(old)
    assert record is not None and record.expires == "2026-03-01T12:00:00+00:00"


def test_limits_of_members_and_tokens(box: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "MAX_MEMBERS", 1)
    monkeypatch.setattr(installation, "MAX_TOKENS", 1)
    join(box)
    box.new_token("ci", CALLER)
    refused(lambda: join(box, "laptop"), FailedPrecondition, reason="MEMBERS_LIMIT")
    refused(lambda: box.new_token("anna", CALLER), FailedPrecondition, reason="TOKENS_LIMIT")


def test_tokens_of_another_file(box: Installation, tmp_path: Path) -> None:
    token = box.new_token("ci", CALLER)
    given = tmp_path / "tokens"
    (box.folder / "tokens.json").rename(given)
    assert box.token_of(token) is None
    found = Installation(tmp_path / "nothing", tokens=given).token_of(token)
    assert found is not None and found.name == "ci"
