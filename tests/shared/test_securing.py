"""Which ports a service opens, and what secures them, from its settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.certificates import authority, issued
from tests.helpers.refusals import refused
from zrelay_shared import paths
from zrelay_shared.errors import FailedPrecondition, InvalidArgument, Unauthenticated
from zrelay_shared.security import certificates
from zrelay_shared.security.installation import Installation
from zrelay_shared.security.permissions import CALLER, Permission
from zrelay_shared.service.roles import EncoderConfig
from zrelay_shared.service.securing import ports_of, security_of

LAN = "192.168.1.5:7501"


@pytest.fixture
def empty(tmp_path: Path) -> EncoderConfig:
    return EncoderConfig(model=Path("m"), security=tmp_path / "security")


@pytest.fixture
def paired(empty: EncoderConfig) -> EncoderConfig:
    assert empty.security is not None
    Installation(empty.security).prepare("box", ["localhost"])
    return empty


def changed(settings: EncoderConfig, **values: Any) -> EncoderConfig:
    return replace(settings, **values)


def given(tmp_path: Path) -> dict[str, Any]:
    certificate, key = issued("box", server_names=["localhost"]).write(tmp_path, "given")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority().certificate)
    return {"tls_certificate": certificate, "tls_key": key, "tls_ca": ca}


def test_loopback_needs_nothing(empty: EncoderConfig, paired: EncoderConfig) -> None:
    for settings in (empty, paired):
        ports = ports_of(settings)
        assert not ports.tls and not ports.secured and ports.token_listen is None


def test_another_address_needs_certificates(empty: EncoderConfig) -> None:
    error = refused(lambda: ports_of(replace(empty, listen=LAN)), reason="LISTEN_INSECURE", field="listen")
    assert "run `zrelay pair` on this machine" in error.message and "--insecure-listen" in error.message


def test_a_paired_machine_listens_with_tls(paired: EncoderConfig) -> None:
    ports = ports_of(replace(paired, listen=LAN))
    assert ports.tls and str(ports.listen) == LAN


def test_insecure_listening_stays(empty: EncoderConfig, paired: EncoderConfig) -> None:
    for settings in (empty, paired):
        assert not ports_of(replace(settings, listen=LAN, insecure_listen=True)).secured


def test_loopback_with_tls(empty: EncoderConfig, tmp_path: Path) -> None:
    refused(
        lambda: ports_of(replace(empty, tls=True)),
        FailedPrecondition,
        reason="NOT_PAIRED",
        match=r"--tls needs .* run `zrelay pair`",
    )
    assert ports_of(replace(empty, tls=True, **given(tmp_path))).tls


def test_tls_and_insecure_listening_exclude_each_other(paired: EncoderConfig) -> None:
    refused(lambda: ports_of(replace(paired, tls=True, insecure_listen=True)), reason="LISTEN_CONFLICT", field="tls")


def test_a_port_for_tokens_needs_certificates(empty: EncoderConfig) -> None:
    refused(
        lambda: ports_of(replace(empty, token_listen="0.0.0.0:7601")),
        FailedPrecondition,
        reason="NOT_PAIRED",
        match=r"--token-listen needs .* run `zrelay pair`",
    )


def test_further_ports(paired: EncoderConfig) -> None:
    ports = ports_of(replace(paired, token_listen="0.0.0.0:7601", health_listen="[::]:7701"))
    assert (str(ports.token_listen), str(ports.health_listen)) == ("0.0.0.0:7601", "[::]:7701")
    assert ports.secured and not ports.tls


@pytest.mark.parametrize("field", ["token_listen", "health_listen"])
def test_a_further_port_that_is_no_address(paired: EncoderConfig, field: str) -> None:
    refused(lambda: ports_of(changed(paired, **{field: "x y"})), reason="LISTEN_INVALID", field=field)


@pytest.mark.parametrize("missing", ["tls_certificate", "tls_key", "tls_ca"])
def test_given_files_belong_together(empty: EncoderConfig, tmp_path: Path, missing: str) -> None:
    settings = replace(empty, **{**given(tmp_path), missing: None})
    refused(lambda: ports_of(settings), InvalidArgument, reason="TLS_FILES_INCOMPLETE")


@pytest.mark.parametrize("damage", ["absent", "key", "damaged"])
def test_given_files_that_cannot_be_used(empty: EncoderConfig, tmp_path: Path, damage: str) -> None:
    files = given(tmp_path)
    if damage == "absent":
        files["tls_key"].unlink()
    else:
        files["tls_key"].write_bytes(certificates.new_key() if damage == "key" else b"x")
    error = refused(
        lambda: security_of(replace(empty, **files)),
        FailedPrecondition,
        reason="CERTIFICATE_UNUSABLE",
        match=r"given\.key: .*; renew the files of --tls-certificate",
    )
    assert "PRIVATE" not in error.message


def test_members_of_another_authority(empty: EncoderConfig, tmp_path: Path) -> None:
    settings = replace(empty, **given(tmp_path), security=None)
    security = security_of(settings)
    found = security.member(certificates.describe(issued("anna").certificate))
    assert (found.name, found.permissions) == ("member anna", CALLER)
    narrow = security_of(replace(settings, tls_permissions="encode"))
    assert narrow.member(certificates.describe(issued("anna").certificate)).permissions == {Permission.ENCODE}
    nameless = replace(certificates.describe(issued("anna").certificate), name="Anna Smith")
    refused(lambda: security.member(nameless), Unauthenticated, reason="CERTIFICATE_NAME_INVALID")
    refused(lambda: security.token("zrt_x"), Unauthenticated, reason="TOKEN_INVALID")
    refused(lambda: security_of(replace(settings, tls_permissions="fly")), reason="TLS_PERMISSIONS_INVALID")


def test_tokens_from_a_credential(paired: EncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paired.security is not None
    token = Installation(paired.security).new_token("ci", CALLER)
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert paths.credential("tokens.json") is None
    (paired.security / "tokens.json").rename(credentials / "tokens.json")
    refused(lambda: security_of(paired).token(token), Unauthenticated, reason="TOKEN_INVALID")
    with_credential = replace(paired, tokens=paths.credential("tokens.json"))
    assert security_of(with_credential).token(token).name == "token ci"
