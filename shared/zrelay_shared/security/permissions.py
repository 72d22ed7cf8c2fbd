"""What a caller may do: the permissions, and the one table of the permission that each method needs."""

from enum import StrEnum


class Permission(StrEnum):
    """What a member or a token may do. `ADMINISTER` includes every other permission."""

    ENCODE = "encode"
    VISION = "vision"
    GENERATE = "generate"
    ADMINISTER = "administer"


ALL = frozenset(Permission)
CALLER = frozenset({Permission.ENCODE, Permission.VISION, Permission.GENERATE})
"""The permissions of a machine that joins: everything but administering."""

OPEN_SERVICES = frozenset({"grpc.health.v1.Health", "zrelay.v1.PairingService"})
"""Services that need no certificate or token: supervisors and load balancers have none, and a machine that is being
paired proves with its code that it may be."""

SERVICE_PERMISSIONS = {
    "zrelay.v1.EncoderService": Permission.ENCODE,
    "zrelay.v1.VisionService": Permission.VISION,
    "zrelay.v1.GeneratorService": Permission.GENERATE,
}
"""The permission that a service's methods need, where `METHOD_PERMISSIONS` has no other."""

METHOD_PERMISSIONS: dict[str, Permission | None] = {
    "zrelay.v1.EncoderService/GetInfo": None,
    "zrelay.v1.VisionService/GetInfo": None,
    "zrelay.v1.GeneratorService/GetInfo": None,
    "zrelay.v1.GeneratorService/UploadLora": Permission.ADMINISTER,  # these two change what all callers use
    "zrelay.v1.GeneratorService/RemoveLora": Permission.ADMINISTER,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": None,
}
"""Methods with another permission than their service's. None is enough for every authenticated caller."""


def needed(method: str) -> Permission | None:
    """Returns the permission that a method needs; None if every authenticated caller may call it.

    Args:
        method: Full name, for example `zrelay.v1.EncoderService/Encode`.

    Raises:
        KeyError: The table does not have the method, or it belongs to one of `OPEN_SERVICES`.
    """
    if method in METHOD_PERMISSIONS:
        return METHOD_PERMISSIONS[method]
    return SERVICE_PERMISSIONS[method.partition("/")[0]]


def may_call(permissions: frozenset[Permission], method: str) -> bool:
    """Returns whether a caller with these permissions may call a method."""
    permission = needed(method)
    return permission is None or permission in permissions or Permission.ADMINISTER in permissions


def parse_permissions(text: str) -> frozenset[Permission]:
    """Reads permissions, separated by commas; `all` stands for every one.

    Raises:
        ValueError: One of them is unknown, or there are none.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    if names == ["all"]:
        return ALL
    unknown = [name for name in names if name not in list(Permission)]
    if unknown or not names:
        known = ", ".join(Permission)
        raise ValueError(f"expected some of {known}, or all, got {', '.join(unknown)[:60] or 'none'}")
    return frozenset(Permission(name) for name in names)
