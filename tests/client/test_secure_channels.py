"""Secure channels: every way in which TLS or a token fails names its fix; real servers, real certificates."""

import re
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.helpers import secured
from tests.helpers.refusals import refused
from tests.helpers.secured import HOST, authority, issued, serving, tls_of
from zrelay_client import AsyncClient, Endpoint, InvalidArgument, TlsOptions, Token, Unauthenticated
from zrelay_client._pool.policy import FailureKind, failure_kind
from zrelay_client._transport.handshake import ChannelDiagnosis
from zrelay_shared.errors import Unavailable
from zrelay_shared.security.tokens import TOKEN_PREFIX

SERVER = issued(names=(HOST,))
CLIENT = tls_of(issued())
TOKEN = TOKEN_PREFIX + "x" * 43


async def failure_of(endpoint: Endpoint) -> Unauthenticated:
    async with AsyncClient(encoder=endpoint) as client:
        with pytest.raises(Unauthenticated) as caught:
            await client.encoder_info()
    return caught.value


async def test_a_certificate_identifies_the_caller() -> None:
    async with serving(SERVER) as address, AsyncClient(encoder=secured.endpoint(address, CLIENT)) as client:
        info = await client.encoder_info()
    assert info.connection is not None
    assert (info.connection.caller, info.connection.security) == ("member mac", "certificate")
    assert info.connection.permissions == ("encode", "generate", "vision")


OLD = issued(starts_days=-40, days=10, age_days=100)


@pytest.mark.parametrize(
    ("server", "tls", "reason", "words"),
    [
        (serving(SERVER), tls_of(None), "CERTIFICATE_MISSING", "`zrelay join CODE` here, or pass --tls-certificate"),
        (serving(issued("two", (HOST,))), CLIENT, "AUTHORITY_UNKNOWN", "another machine answers in its place"),
        (serving(SERVER), tls_of(issued("two")), "CERTIFICATE_REFUSED", "another authority has issued it"),
        (
            serving(issued(names=(HOST,), starts_days=-40, days=10, age_days=100)),
            tls_of(issued(), age_days=100),
            "CERTIFICATE_EXPIRED",
            "the certificate of the encoder service .* `zrelay pair --renew` there",
        ),
        (
            serving(issued(names=(HOST,), age_days=100), age_days=100),
            tls_of(OLD, age_days=100),
            "CERTIFICATE_EXPIRED",
            "the client certificate mac .* `zrelay join CODE` here",
        ),
        (serving(issued(names=(HOST,), starts_days=5)), CLIENT, "CERTIFICATE_NOT_YET_VALID", "clocks of both machines"),
        (serving(SERVER), tls_of(issued(starts_days=5)), "CERTIFICATE_NOT_YET_VALID", "client certificate mac .*clock"),
        (serving(issued(names=("gpu.local",))), CLIENT, "SERVER_NAME_MISMATCH", "valid for gpu.local, not .* use one"),
        (serving(SERVER), None, "TLS_REQUIRED", "or pass --tls-authority FILE with the endpoint tls:127"),
        (serving(SERVER, clients_of=None), None, "TLS_REQUIRED", "`zrelay join CODE` here"),
        (serving(), CLIENT, "TLS_NOT_OFFERED", "check the port; run `zrelay pair` there"),
    ],
    ids=[
        "no certificate",
        "wrong authority of the server",
        "wrong authority of the client",
        "server expired",
        "client expired",
        "server not yet valid",
        "client not yet valid",
        "wrong name",
        "plaintext to a TLS port",
        "plaintext to a token port",
        "TLS to a plaintext port",
    ],
)
async def test_a_failed_handshake_names_its_fix(
    server: AbstractAsyncContextManager[str], tls: TlsOptions | None, reason: str, words: str
) -> None:
    async with server as address:
        error = await failure_of(secured.endpoint(address, tls))
    assert error.reason == reason
    assert re.search(words, error.message), error.message
    assert error.message.endswith(error.metadata["remedy"])
    assert failure_kind(error) is FailureKind.UNFIT, "another generator may take the job"


async def test_a_token_is_sent_over_tls(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    port = serving(SERVER, clients_of=None, identify=secured.caller_of(token=TOKEN))
    async with port as address:
        endpoint = Endpoint("encoder", address, tls=tls_of(None), token=Token(file))
        async with AsyncClient(encoder=endpoint) as client:
            info = await client.encoder_info()
            assert info.connection is not None and info.connection.caller == "token ci"
            file.write_text(TOKEN_PREFIX + "old")
            with pytest.raises(Unauthenticated, match="make a new one") as caught:  # it was read again
                await client.encoder_info()
        assert caught.value.reason == "TOKEN_INVALID"
        assert (await failure_of(secured.endpoint(address, tls_of(None)))).reason == "TOKEN_INVALID"
        file.unlink()
        with pytest.raises(FileNotFoundError):
            async with AsyncClient(encoder=endpoint) as client:
                await client.encoder_info()


def test_a_token_is_neither_shown_nor_sent_in_the_clear(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    token = Token(tmp_path / "token")
    assert token.value() == TOKEN
    assert TOKEN not in repr(token) and TOKEN not in repr(Endpoint("encoder", "gpu.local:1", tls=CLIENT, token=token))
    with pytest.raises(InvalidArgument, match="pass --tls-authority FILE, or join") as caught:
        Endpoint("encoder", "gpu.local:1", token=token)
    assert caught.value.reason == "TOKEN_NEEDS_TLS"
    assert Endpoint("encoder", "[::1]:1", token=token).is_local  # no TLS: nothing is sent


def test_keys_are_not_shown() -> None:
    key = issued().key.decode().splitlines()[1]
    assert key not in repr(CLIENT) and key not in repr(secured.endpoint("a:1", CLIENT))


def test_files_that_are_no_credentials_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(authority().certificate)
    refused(lambda: TlsOptions(key=file), match="`tls_certificate` with it", reason="TLS_FILES_INCOMPLETE")
    wrong = TlsOptions(authority=file, certificate=file, key=file)
    refused(wrong.read, match="with a private key", reason="TLS_FILE_INVALID")
    file.write_bytes(b"-----BEGIN CERTIFICATE-----\n" + b"x" * (65 << 10))
    refused(TlsOptions(authority=file).read, match="at most 64 KiB", reason="TLS_FILE_INVALID")


async def test_calls_that_fail_together_share_one_diagnosis() -> None:
    async with serving(SERVER) as address:
        diagnosis = ChannelDiagnosis(secured.endpoint(address, None))
        lost = Unavailable("lost", metadata={"grpc": "Socket closed"})
        first = await diagnosis.explained(lost)
        assert first.reason == "TLS_REQUIRED"
    assert await diagnosis.explained(lost) is first, "a channel that keeps failing is examined every 10 s"
    assert await ChannelDiagnosis(secured.endpoint(address, None)).explained(lost) is lost  # nothing listens
    busy = Unavailable("busy", retry_after_s=1.0)
    assert await diagnosis.explained(busy) is busy


async def test_a_connection_that_works_again_keeps_its_error() -> None:
    async with serving(SERVER) as address:
        for tls in (CLIENT, tls_of(issued())):
            lost = Unavailable("lost", metadata={"grpc": "Socket closed"})
            assert await ChannelDiagnosis(secured.endpoint(address, tls)).explained(lost) is lost


@pytest.mark.deep
def test_loopback_calls_do_not_load_cryptography() -> None:
    script = """
import sys
from zrelay_client.testing import FakeServices
with FakeServices() as fake, fake.client() as client:
    client.generate("a red fox")
assert not {"cryptography", "zrelay_client._transport.handshake"} & set(sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
