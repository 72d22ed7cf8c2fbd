"""Endpoints of a client, and clients that are made from the loaded configuration."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.refusals import refused
from zrelay_client import AsyncClient, Client, Endpoint, InvalidArgument, Settings
from zrelay_client._transport.endpoint import parse_endpoints

from .conftest import Services


@pytest.mark.parametrize(
    ("text", "address", "host_and_port"),
    [
        ("box", "box:7503", ("box", 7503)),
        (" box:1 ", "box:1", ("box", 1)),
        ("[::1]:5", "[::1]:5", ("::1", 5)),
        ("::1", "[::1]:7503", ("::1", 7503)),
        ("[::1]", "[::1]:7503", ("::1", 7503)),
        ("[fe80::1%eth0]:07503", "[fe80::1%eth0]:7503", ("fe80::1%eth0", 7503)),
        ("box.local.", "box.local.:7503", ("box.local.", 7503)),
        ("bücher.local:65535", "bücher.local:65535", ("bücher.local", 65535)),
        ("dns:///box:1", "dns:///box:1", None),
        ("unix:/run/x", "unix:/run/x", None),
    ],
)
def test_an_endpoint_has_an_address_for_grpc(text: str, address: str, host_and_port: object) -> None:
    endpoint = Endpoint.parse("generator", text, "flag")
    assert endpoint == Endpoint("generator", address, "flag")
    assert (str(endpoint), endpoint.host_and_port) == (address, host_and_port)


def test_endpoints_are_texts_values_or_sequences_of_them() -> None:
    box = Endpoint("generator", "box:1")
    assert parse_endpoints("generator", None) == ()
    assert parse_endpoints("generator", box) == (box,)
    assert parse_endpoints("generator", ["box:1", box, "a, b:2"]) == (
        box,
        Endpoint("generator", "a:7503"),
        Endpoint("generator", "b:2"),
    )
    with pytest.raises(InvalidArgument, match="an endpoint with the role encoder, got one with the role generator"):
        AsyncClient(encoder=box)


BAD = [
    *(
        "box:",
        "box:0",
        "box:65536",
        "box:-1",
        "box:+1",
        "box:1 2",
        "box:1.0",
        "box:7_5",
        "box:123456",
        "box:x",
        "a:b:c",
    ),
    *("127.0.0.1:750²", "127.0.0.1:７５０３", "ipv4:127.0.0.1:750²", "[::1]:７"),
    *("[::1", "::1]", "[]", "[]:1", "[::1]x", "[::1]1", "[box]:1", "[[::1]]:1", "[::g]:1", "[1.2.3.4]:1"),
    *("", " ", ":", ":7503", "a b", "a/b", "http://box", "a..b", ".", "a\0b", "unix:", "dns:"),
]


@pytest.mark.parametrize("bad", BAD)
def test_an_endpoint_that_cannot_be_dialled_is_refused(bad: str) -> None:
    makers: tuple[Callable[[str, str], Endpoint], ...] = (Endpoint.parse, Endpoint)
    for make in makers:
        refused(partial(make, "generator", bad), reason="ENDPOINT_INVALID", match="127.0.0.1:7503, got ")


@pytest.mark.parametrize(("text", "named"), [("box:0", True), ("[::1]:99999", True), ("box:x", False)])
def test_a_port_out_of_range_is_refused_with_the_range(text: str, named: bool) -> None:
    error = refused(partial(Endpoint.parse, "generator", text), reason="ENDPOINT_INVALID")
    assert error.message.endswith("; a port is 1 to 65535") == named


def test_an_address_needs_a_port() -> None:
    refused(lambda: Endpoint("generator", "box"), reason="ENDPOINT_INVALID", field="generator")


def test_an_unknown_role_is_refused_with_the_known_ones() -> None:
    calls: list[Callable[[str], object]] = [
        lambda role: Endpoint(role, "box:1"),
        lambda role: Endpoint.parse(role, "box:1"),
        lambda role: parse_endpoints(role, None),
        lambda role: Settings().endpoints(role),
        lambda role: Settings().origin(role),
        lambda role: Settings().require(role),
        lambda role: Settings().config.service(role),
    ]
    for call in calls:
        error = refused(partial(call, "gen"), reason="ROLE_INVALID", field="role")
        assert error.message == (
            "role: expected one of encoder, vision, generator, got 'gen'; did you mean 'generator'?"
        )
        refused(partial(call, "painter"), match="encoder, vision, generator, got 'painter'")


@pytest.mark.parametrize("bad", ["a b/c", ["127.0.0.1:1", ""], "127.0.0.1:0,"])
def test_a_text_that_is_no_endpoint_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidArgument, match="expected an endpoint") as caught:
        AsyncClient(generator=bad)
    assert caught.value.reason == "ENDPOINT_INVALID"


def test_a_client_from_settings(services: Services, empty_home: Path) -> None:
    (empty_home / "config.toml").write_text(
        f'[profile.default.encoder]\nendpoint = "{services.encoder}"\n'
        f'[profile.default.generator]\nendpoint = "{services.generator}"\n[generate]\ntimeout_s = 50\n'
    )
    settings = Settings.load()
    assert settings.texts == {"encoder": services.encoder, "generator": services.generator}
    (endpoint,) = settings.endpoints("generator")
    assert (endpoint.address, endpoint.origin) == (services.generator, settings.origin("generator"))
    assert "config.toml [profile.default.generator]" in endpoint.origin
    settings.require("encoder", "generator")
    with pytest.raises(InvalidArgument, match="no vision is configured"):
        settings.require("vision")
    with Client.from_settings(settings) as client:
        assert client.serving() == {"encoder": True, "generator": True}
        assert client._target._timeout_s == 50
    with Client.from_settings(settings, roles=("encoder",), timeout_s=9) as client:
        assert client.serving() == {"encoder": True}
        assert client._target._timeout_s == 9


def test_a_client_from_settings_without_endpoints_reads_no_configuration(empty_home: Path) -> None:
    (empty_home / "config.toml").write_text('[profile.default.encoder]\nendpoint = "box"\n')
    with (
        Client.from_settings(Settings()) as client,
        pytest.raises(InvalidArgument, match="this client has no endpoint"),
    ):
        client.encoder_info()


@pytest.mark.parametrize("text", ["ipv4:127.0.0.1:7503", "ipv6:[::1]:7503", "ipv6:::1", "dns:box", "dns://ns/box:1"])
def test_targets_of_grpc_are_endpoints(text: str) -> None:
    assert Endpoint.parse("generator", text).address == text


@pytest.mark.parametrize(
    "text",
    ["ipv6:zz", "ipv6:127.0.0.1:1", "ipv4:box:1", "ipv4:[::1]:1", "ipv4:1.2.3.4:750²", "dns:///", "unix:", "dns:"],
)
def test_targets_of_grpc_without_a_place_are_refused(text: str) -> None:
    refused(lambda: Endpoint.parse("generator", text), reason="ENDPOINT_INVALID")


@pytest.mark.parametrize("kind", [AsyncClient, Client])
def test_unknown_roles_are_refused(kind: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"role: expected one of encoder, .*, got 'gen'.*'generator'"):
        kind.from_settings(Settings(), roles=["gen"])
    with pytest.raises(TypeError, match="roles: expected several roles, got one: put it into a list"):
        kind.from_settings(Settings(), roles="generator")
