"""Profiles of joined boxes: the file, the endpoints and credentials that follow, and what doctor says of them."""

import asyncio
import json
import os
import shlex
import stat
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.helpers import secured
from tests.helpers.command_line import run_zrelay
from tests.helpers.refusals import refused
from tests.helpers.secured import HOST, issued, serving, tls_of
from zrelay_client import Client, Endpoint, FailedPrecondition, NotFound, Settings, TlsOptions, Token
from zrelay_client._transport.credentials import Pem
from zrelay_client.cli.info import field_rows
from zrelay_client.doctor import Check, check_connection, check_services
from zrelay_client.info import ConnectionReport
from zrelay_client.profiles import AddressBook, Box, JoinedProfile, load, load_all, remove, save
from zrelay_client.stack import record
from zrelay_client.stack.launch import check_host
from zrelay_client.stack.processes import ProcessId, start_mark
from zrelay_client.stack.record import StackRecord, StackService, own_tls
from zrelay_shared import exits
from zrelay_shared.connection import joined_profiles, profiles_dir
from zrelay_shared.security.installation import Installation

TLS = tls_of(issued())
GPU = Box("gpu", {"generator": "gpu.local", "encoder": "gpu.local:9"}, TLS, hosts=("10.0.0.1", "[fe80::1]"))


def test_a_profile_is_kept_in_one_private_file(empty_home: Path) -> None:
    file = save(GPU)
    assert file == profiles_dir() / "default.json" == empty_home / "state/profiles/default.json"
    if os.name != "nt":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert load().boxes == (replace(GPU, endpoints={"encoder": "gpu.local:9", "generator": "gpu.local:7503"}),)
    save(Box("mac", {"encoder": "mac.local"}, TLS))
    save(replace(GPU, hosts=()))  # takes the place of the first
    assert [(box.name, box.hosts) for box in load().boxes] == [("gpu", ()), ("mac", ())]
    remove("mac")
    with pytest.raises(NotFound, match="no box 'mac' in the profile 'default'; there are: gpu"):
        remove("mac")
    remove("gpu")
    assert not file.exists() and joined_profiles() == ()
    with pytest.raises(NotFound, match="there is none: `zrelay join CODE --profile home`"):
        load("home")


def test_paths_in_a_profile_are_relative_to_its_folder(empty_home: Path) -> None:
    file = save(GPU, "home")
    content = json.loads(file.read_text())
    (file.parent / "gpu.pem").write_text(content["boxes"][0]["authority"])
    content["boxes"][0] |= {"authority": "gpu.pem", "token_file": "token"}
    file.write_text(json.dumps(content))
    (box,) = load("home").boxes
    assert box.tls.authority == file.parent / "gpu.pem" and box.tls.read() == TLS.read()
    assert box.token == Token(file.parent / "token")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ('{"version": 2, "boxes": []}', "has version 2, this zrelay reads 1"),
        ('{"version": 1}', "the key 'boxes' is missing"),
        ('{"version": 1, "boxes": [{"name": "A", "endpoints": {}}]}', "expected 1 to 63 lower-case letters"),
        ('{"version": 1, "boxes": [{"name": 5, "endpoints": {}}]}', "expected a text, got 5"),
        ('{"version": 1, "boxes": [{"name": "a", "endpoints": {"painter": "a"}}]}', "expected one of encoder"),
        ('{"version": 1, "boxes": [{"name": "a", "endpoints": {}, "key": "k"}]}', "`tls_certificate` with it"),
    ],
)
def test_a_damaged_profile_is_refused(empty_home: Path, text: str, words: str) -> None:
    file = save(GPU)
    file.write_text(text)
    with pytest.raises(FailedPrecondition, match=words) as caught:
        load_all()
    assert caught.value.reason == "PROFILE_INVALID" and f"{file}" in caught.value.message


@pytest.mark.parametrize("name", ["", "A", "12", "a/b", "../a", "a" * 64, "-a"])
def test_names_that_cannot_be_used(empty_home: Path, name: str) -> None:
    refused(lambda: Box(name, {}, TLS), reason="BOX_INVALID", match="lower-case letters")
    refused(lambda: save(GPU, name), reason="PROFILE_NAME_INVALID", match="lower-case letters")


def profile(name: str, *boxes: Box) -> JoinedProfile:
    return JoinedProfile(name, boxes, Path(f"/{name}.json"))


BOOK = AddressBook(
    (profile("home", GPU), profile("work", Box("gpu", {"encoder": "w:1"}, TLS), Box("ci", {}, TLS))), "home"
)


@pytest.mark.parametrize(
    ("text", "address", "is_secured"),
    [
        ("gpu", "gpu.local:7503", True),
        ("box:gpu", "gpu.local:7503", True),
        ("GPU.local", "GPU.local:7503", True),
        ("10.0.0.1:9", "10.0.0.1:9", True),
        ("[fe80::1]:7503", "[fe80::1]:7503", True),
        ("gpu.local:8", "gpu.local:8", False),
        ("box:1", "box:1", False),
        ("127.0.0.1", "127.0.0.1:7503", False),
        ("tls:127.0.0.1:5", "127.0.0.1:5", True),
    ],
)
def test_an_endpoint_of_a_box_gets_its_credentials(text: str, address: str, is_secured: bool) -> None:
    found = BOOK.endpoint("generator", text, "flag")
    assert (found.address, found.origin, found.tls is not None) == (address, "flag", is_secured)


def test_a_box_that_is_unknown_ambiguous_or_has_no_such_service() -> None:
    for book, text, words in (
        (BOOK, "box:mac", "joined are ci, gpu"),
        (AddressBook(), "box:mac", "none is joined: `zrelay pair` there, `zrelay join` here"),
        (replace(BOOK, first=None), "gpu", "the profiles home, work have one each: choose one with --profile"),
        (BOOK, "box:ci", "got ci, which serves nothing"),
    ):
        refused(partial(book.endpoint, "generator", text), reason="BOX_UNKNOWN", match=words)


def test_given_files_take_precedence_off_this_machine(tmp_path: Path) -> None:
    given = TlsOptions(tmp_path / "ca.pem")
    book = replace(BOOK, tls=given, token=Token(tmp_path / "token"))
    assert book.endpoint("generator", "gpu.local").tls is given
    assert book.endpoint("generator", "other.local").token == Token(tmp_path / "token")
    assert book.endpoint("generator", "box:gpu").tls is TLS
    assert book.endpoint("generator", "127.0.0.1").tls is None
    assert book.endpoint("generator", "tls:127.0.0.1").tls is given


def test_boxes_supply_the_endpoints_that_nothing_sets(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(GPU)
    save(Box("cloud", {"encoder": "c:1"}, TLS), "work")
    settings = Settings.load()
    assert settings.texts == {"encoder": "box:gpu", "generator": "box:gpu"}
    assert settings.origin("encoder") == str(profiles_dir() / "default.json")
    (endpoint,) = settings.endpoints("generator")
    assert endpoint.address == "gpu.local:7503" and endpoint.tls is not None
    assert Settings.load("work").texts == {"encoder": "box:cloud"}
    monkeypatch.setenv("ZRELAY_PROFILE", "work")
    assert Settings.load(flags={"encoder.endpoint": "x"}).texts == {"encoder": "x"}
    running = replace(Settings.load(), running={"encoder": "127.0.0.1:5"})
    assert running.texts == {"encoder": "box:cloud"}, "a chosen profile takes precedence over `zrelay up`"
    monkeypatch.delenv("ZRELAY_PROFILE")
    assert replace(Settings.load(), running={"encoder": "127.0.0.1:5"}).texts["encoder"] == "127.0.0.1:5"


def test_the_files_of_a_connection_are_settings(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_home / "config.toml").write_text('[profile.default.connection]\ntls_authority = "/a"\ntoken_file = "/t"\n')
    assert Settings.load().addresses.tls == TlsOptions(Path("/a"))
    monkeypatch.setenv("ZRELAY_CONNECTION_TLS_AUTHORITY", "~/b")
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("USERPROFILE", "/h")
    assert Settings.load().addresses.tls == TlsOptions(Path("/h/b"))
    assert Settings.load().addresses.token == Token(Path("/t"))
    flags: dict[str, object] = {"connection.tls_authority": "none", "connection.token_file": "none"}
    assert Settings.load(flags=flags).addresses.tls is None


async def test_the_command_line_uses_boxes_and_files(empty_home: Path) -> None:
    client = issued()
    async with serving(issued(names=(HOST,))) as address:
        save(Box("gpu", {"encoder": address}, TLS))
        for arguments in ((), ("--encoder", "gpu"), ("--encoder", address)):
            ran = await asyncio.to_thread(run_zrelay, "info", "--json", *arguments)
            assert ran.returncode == 0, ran.stderr
            assert json.loads(ran.stdout)["encoder"]["connection"]["caller"] == "member mac"
        remove("gpu")
        ran = await asyncio.to_thread(run_zrelay, "info", "--encoder", address)
        assert ran.returncode == exits.REFUSED and "wants TLS, and this client connects without" in ran.stderr
        for name, data in (("ca", secured.authority().certificate), ("pem", client.certificate), ("key", client.key)):
            (empty_home / name).write_bytes(data)
        files = [f"--tls-{name}={empty_home / file}" for name, file in
                 (("authority", "ca"), ("certificate", "pem"), ("key", "key"))]  # fmt: skip
        ran = await asyncio.to_thread(run_zrelay, "info", "--encoder", f"tls:{address}", *files)
        assert ran.returncode == 0, ran.stderr
        ran = await asyncio.to_thread(run_zrelay, "info", "--encoder", f"tls:{address}", *files[:2])
        assert ran.returncode == exits.REFUSED and "--tls-certificate: expected --tls-key with it" in ran.stderr


async def test_doctor_checks_tls_certificate_permissions_and_clock(empty_home: Path) -> None:
    async with serving(issued(names=(HOST,)), identify=secured.caller_of(ends_days=20)) as address:
        save(Box("gpu", {"encoder": address}, TLS))
        found = {check.name: check async for check in check_services(Settings.load())}
    assert found["encoder TLS"].state == "ok" and "issued by authority one" in found["encoder TLS"].message
    certificate = found["encoder client certificate"]
    assert certificate.state == "warn" and "`zrelay join CODE` here" in certificate.fix
    assert found["encoder permissions"].message == "member mac may encode, generate, vision"
    assert found["encoder clock"].state == "ok"
    assert found["encode"].state == "ok"


async def test_doctor_names_what_is_wrong_with_tls(empty_home: Path) -> None:
    async with serving(issued("two", (HOST,))) as address:
        save(Box("gpu", {"encoder": address}, TLS))
        checks = [check async for check in check_services(Settings.load())]
    failed = next(check for check in checks if check.state == "fail")
    assert (failed.name, failed.exit_code) == ("encoder TLS", exits.REFUSED)
    assert failed.fix == "if that machine was set up again, run `zrelay pair` there and `zrelay join CODE` here"
    assert failed.fix not in failed.message


def report(**changes: object) -> ConnectionReport:
    now = int(time.time())
    made = ConnectionReport("certificate", "member mac", ("generate",), 0, now + 90 * 86400, now)
    return replace(made, **changes)  # type: ignore[arg-type]


def checks_of(endpoint: Endpoint, reported: ConnectionReport | None) -> dict[str, Check]:
    return {check.name.removeprefix("box "): check for check in check_connection(endpoint, "box", reported)}


def test_doctor_warns_of_a_connection_in_time(tmp_path: Path) -> None:
    gpu, now = Endpoint("generator", "gpu.local:1", tls=TLS), int(time.time())
    assert {check.state for check in checks_of(gpu, report()).values()} == {"ok"}
    ends = checks_of(gpu, report(server_certificate_ends=now + 29 * 86400))["TLS"]
    assert (
        ends.state == "warn"
        and ends.fix == "run `zrelay pair --renew` there, or issue a new one if it is not from `zrelay pair`"
    )
    skew = checks_of(gpu, report(server_time=now - 400))["clock"]
    assert skew.state == "warn" and skew.message.endswith("behind this machine's") and "`date -u`" in skew.fix
    weak = checks_of(gpu, report(permissions=("encode",)))["permissions"]
    assert weak.state == "fail" and "--renew mac --permissions encode,generate`" in weak.fix
    token = replace(gpu, token=Token(tmp_path / "t"))
    ends = checks_of(token, report(security="token", caller="token ci", credentials_end=now + 86400 * 2))["token"]
    assert ends.state == "warn" and str(tmp_path / "t") in ends.fix
    assert checks_of(Endpoint("generator", "127.0.0.1:1"), report(security="loopback")) == {}
    for endpoint, reported in (("127.0.0.1:1", report(security="insecure")), ("gpu.local:1", None)):
        insecure = checks_of(Endpoint("generator", endpoint), reported)["TLS"]
        assert insecure.state == "warn" and "without --insecure-listen" in insecure.fix


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
async def test_doctor_warns_of_a_profile_that_others_can_read(empty_home: Path) -> None:
    file = save(Box("gpu", {}, TLS))
    file.chmod(0o644)
    (check,) = [check async for check in check_services(Settings.load())]
    assert (check.state, check.fix) == ("warn", f"chmod 600 {file}")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
async def test_doctor_warns_of_a_token_that_others_can_read(empty_home: Path, tmp_path: Path) -> None:
    file = tmp_path / "alice's token"
    file.write_text("zrt_" + "a" * 43)
    file.chmod(0o644)
    save(Box("gpu", {"encoder": "gpu.invalid:1"}, TLS, token_file=file))
    checks = {check.name: check async for check in check_services(Settings.load(), connect_s=0.2)}
    check = checks["encoder token file"]
    assert (check.state, check.fix) == ("warn", f"chmod 600 {shlex.quote(str(file))}")


def test_times_are_shown_as_dates() -> None:
    values = {"server_time": 1827402214, "credentials_end": 0, "server_certificate_ends": 10**40}
    shown = [value for _, _, value in field_rows(values)]
    assert shown == ["2027-11-28 11:43:34 UTC", "-", str(10**40)]


def test_up_refuses_an_address_without_certificates(empty_home: Path) -> None:
    folder = empty_home / "state" / "security"
    for words in ("expected certificates", r"expected a name .* \(10.0.0.1\), got another"):
        with pytest.raises(FailedPrecondition, match=f"{words}.*`zrelay pair --address gpu.local`") as caught:
            check_host("gpu.local", folder)
        assert caught.value.reason == "NOT_PAIRED"
        Installation(folder).prepare("gpu", ["10.0.0.1"])
    check_host("10.0.0.1", folder)
    ran = run_zrelay("up", "--host", "gpu.local")
    assert ran.returncode == exits.REFUSED and "--host gpu.local: expected a name" in ran.stderr


def test_services_of_up_with_tls_are_called_with_the_machine_s_own_certificate(empty_home: Path) -> None:
    state = empty_home / "state"
    Installation(state / "security").prepare("gpu", ["10.0.0.1"])
    own = ProcessId(os.getpid(), start_mark(os.getpid()) or "")
    service = StackService("encoder", own, "10.0.0.1:7501", "log")
    record.save(state, StackRecord("demo", 1.0, (service,), str(state / "security")))
    (endpoint,) = Settings.load().endpoints("encoder")
    assert endpoint.tls == own_tls(state / "security") and all(endpoint.tls.read())
    record.save(state, StackRecord("demo", 1.0, (service,)))
    assert Settings.load().endpoints("encoder")[0].tls is None


def test_a_client_of_a_box(empty_home: Path) -> None:
    save(GPU)
    with Client(generator="gpu.local") as client:
        (endpoint,) = client._target._endpoints["generator"]
    sources: list[Pem | None] = [endpoint.tls.authority] if endpoint.tls is not None else []
    assert sources == [TLS.authority]


def test_loopback_names_of_a_box_mean_this_machine() -> None:
    """The certificate of every box is valid for localhost, where another service of this machine may listen."""
    hosts = ("gpu.local", "localhost", "127.0.0.1", "::1")
    box = Box("gpu", {"generator": "192.168.1.5:7503"}, TLS, hosts)
    assert box.addresses == {("192.168.1.5", 7503), ("gpu.local", 7503)}
