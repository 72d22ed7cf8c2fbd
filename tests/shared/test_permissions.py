"""The table of the permission that each method needs."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from zrelay_shared.security import permissions
from zrelay_shared.security.permissions import ALL, CALLER, OPEN_SERVICES, Permission, may_call, needed

CONTRACT = Path(__file__).parents[2] / "proto/zrelay/v1"
MODULES: list[ModuleType] = [
    *(importlib.import_module(f"zrelay.v1.{path.stem}_pb2") for path in sorted(CONTRACT.glob("*.proto"))),
    health_pb2,
    reflection_pb2,
]
SERVICES: list[ServiceDescriptor] = [
    service for module in MODULES for service in module.DESCRIPTOR.services_by_name.values()
]


def methods() -> Iterator[str]:
    for service in SERVICES:
        yield from (f"{service.full_name}/{method.name}" for method in service.methods)


def test_every_method_has_a_permission_or_is_open() -> None:
    for method in methods():
        if method.partition("/")[0] in OPEN_SERVICES:
            with pytest.raises(KeyError):
                needed(method)
        else:
            assert needed(method) in (None, *Permission)


def test_the_table_names_nothing_that_does_not_exist() -> None:
    services = {service.full_name for service in SERVICES}
    assert services == {
        *permissions.SERVICE_PERMISSIONS,
        *OPEN_SERVICES,
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert permissions.METHOD_PERMISSIONS.keys() <= set(methods())


def test_what_needs_no_permission_at_all() -> None:
    open_methods = {method for method in methods() if method.partition("/")[0] not in OPEN_SERVICES}
    free = {method for method in open_methods if needed(method) is None}
    assert free == {
        "zrelay.v1.EncoderService/GetInfo",
        "zrelay.v1.VisionService/GetInfo",
        "zrelay.v1.GeneratorService/GetInfo",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }


@pytest.mark.parametrize("permission", Permission)
def test_a_permission_admits_to_its_own_service_alone(permission: Permission) -> None:
    admitted = {
        method.partition("/")[0]
        for method in methods()
        if method.partition("/")[0] not in OPEN_SERVICES
        and needed(method) is not None
        and may_call(frozenset({permission}), method)
    }
    own = {name for name, each in permissions.SERVICE_PERMISSIONS.items() if each is permission}
    assert admitted == (set(permissions.SERVICE_PERMISSIONS) if permission is Permission.ADMINISTER else own)


def test_what_a_machine_that_joins_may_do() -> None:
    assert ALL - {Permission.ADMINISTER} == CALLER
    assert may_call(CALLER, "zrelay.v1.GeneratorService/Generate")
    assert not may_call(CALLER, "zrelay.v1.GeneratorService/UploadLora")
    assert not may_call(frozenset(), "zrelay.v1.EncoderService/EncodePrompts")


def test_an_unknown_method_is_nobodys() -> None:
    with pytest.raises(KeyError):
        may_call(ALL, "zrelay.v1.NewService/Do")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("encode", {Permission.ENCODE}),
        (" generate , vision", {Permission.GENERATE, Permission.VISION}),
        ("all", ALL),
        ("encode,vision,generate", CALLER),
    ],
)
def test_permissions_as_text(text: str, expected: set[Permission]) -> None:
    assert permissions.parse_permissions(text) == expected


@pytest.mark.parametrize("text", ["", ",", "fly", "encode,fly", "all,encode", "Encode"])
def test_texts_that_are_no_permissions(text: str) -> None:
    with pytest.raises(ValueError, match="expected some of encode, vision, generate, administer, or all, got"):
        permissions.parse_permissions(text)
