"""`zrelay info`: the services, or how an image file was made."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from zrelay_client.cli._options import PATH, Flags, OptionsCommand, client_of, json_option, load_settings, run
from zrelay_client.cli._output import echo, format_bytes, print_fields, print_json
from zrelay_shared import exits

if TYPE_CHECKING:
    from zrelay_client.info import ServiceInfo, ServiceStatus

_MAX_IMAGE_BYTES = 256 << 20
"""The largest image that is read. A generator writes at most 64 MiB."""
_MAX_SHOWN_CHARS = 100_000
"""Characters of provenance that are shown without --json. A terminal would need minutes for a few megabytes."""
_TIMES = ("credentials_end", "server_certificate_ends", "server_time")
"""Names of values that are seconds since 1970; 0 is none."""
_LINE_CHARS = 100
"""Characters that a line counts in addition to its own."""
_IN_TITLE = ("role", "endpoint", "version", "contract", "ready", "features")


@click.command("info", cls=OptionsCommand, roles=("encoder", "vision", "generator"))
@click.argument("image", type=PATH, required=False)
@json_option
def command(image: str | None, as_json: bool, flags: Flags, profile: str | None) -> int:
    """Show every configured service; with IMAGE, how that image was made."""
    if image is not None:
        _show_image(image, as_json=as_json)
        return exits.OK
    settings = load_settings(profile, flags)
    if not settings.texts:
        load_settings(profile, flags, "encoder", "generator")

    async def read() -> "tuple[ServiceStatus, ...]":
        async with client_of(settings) as client:
            return await client.status()

    statuses = run(read())
    failures = [status.error for status in statuses if status.error is not None]
    if as_json:
        print_json(_values(statuses))
    elif failures and len(statuses) == 1:
        raise failures[0]
    else:
        for index, status in enumerate(statuses):
            if index:
                echo()
            _show_status(status)
    return exits.code_of(failures[0]) if failures else exits.OK


def field_rows(values: Mapping[str, Any], level: int = 0) -> Iterator[tuple[int, str, str]]:
    """Yields (level, name, value) of nested values; what holds others has no value of its own."""
    for name, value in values.items():
        inner = _inner(value)
        if inner:
            yield level, name, ""
            yield from field_rows(inner, level + 1)
        else:
            yield level, name, _text(name, value)


def _shown(rows: Iterator[tuple[int, str, str]]) -> Iterator[tuple[int, str, str]]:
    """Yields rows of at most `_MAX_SHOWN_CHARS` characters together; if rows are left out, the last row says so."""
    left = _MAX_SHOWN_CHARS
    for level, name, value in rows:
        lines = value[:left].split("\n")
        yield level, name, "\n".join(lines[: max(1, left // _LINE_CHARS)])
        left -= len(name) + len(value) + _LINE_CHARS * (value.count("\n") + 1)
        if left <= 0:
            yield 0, "...", "more than fits here; --json prints all of it"
            return


def _inner(value: object) -> dict[str, Any]:
    """Returns the named parts of a value, {} for one without."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple) and value and all(parts := [_inner(item) for item in value]):
        return {str(part.pop("name", index)): part for index, part in enumerate(parts, start=1)}
    return {}


def _text(name: str, value: object) -> str:
    if value is None or (isinstance(value, str | list | tuple | Mapping) and not value):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.endswith("bytes"):
        return f"{value} ({format_bytes(value)})"
    if isinstance(value, int) and name in _TIMES and 0 <= value < 1 << 37:
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC" if value else "-"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(
            ":".join(map(str, item)) if isinstance(item, list | tuple) else _text("", item) for item in value
        )
    return str(value)


def _show_status(status: "ServiceStatus") -> None:
    if status.info is None:
        message = status.error.message if status.error is not None else ""
        echo(f"{status.role} at {status.endpoint}: {message}")
        return
    info: ServiceInfo = status.info
    ready = "ready" if info.ready else "not ready"
    title = f"{info.role} at {info.endpoint}: {ready}, zrelay {info.version}, contract {info.contract}"
    values = {item.name: getattr(info, item.name) for item in fields(info) if item.name not in _IN_TITLE}
    values["features"] = [feature.name for feature in info.features if feature.available]
    values["not available"] = [feature.name for feature in info.features if not feature.available]
    print_fields(title, list(field_rows(values, level=1)))


def _values(statuses: "tuple[ServiceStatus, ...]") -> dict[str, Any]:
    """Returns what --json prints.

    Each role has one entry: the information of its first service that answered, or an error if none did. If a role has
    several services, or one did not answer, `endpoints` lists every service.
    """
    services: dict[str, Any] = {}
    for status in sorted(statuses, key=lambda status: status.info is None):
        services.setdefault(status.role, _entry(status))
    if len(services) < len(statuses) or any(status.error is not None for status in statuses):
        services["endpoints"] = [
            {
                "role": status.role,
                "endpoint": status.endpoint,
                "error": status.error.message if status.error is not None else None,
                "info": asdict(status.info) if status.info is not None else None,
            }
            for status in statuses
        ]
    return services


def _entry(status: "ServiceStatus") -> dict[str, Any]:
    if status.info is not None:
        return asdict(status.info)
    error = status.error
    values = {"reason": error.reason, "message": error.message} if error is not None else {}
    return {"role": status.role, "endpoint": status.endpoint, "error": values}


def _show_image(image: str, *, as_json: bool) -> None:
    from pathlib import Path

    from zrelay_client.image_files import read_image
    from zrelay_client.provenance import read_provenance

    file = read_image(image, max_bytes=_MAX_IMAGE_BYTES)
    values = {"file": str(Path(image)), "bytes": len(file.data), "file_sha256": file.sha256}
    provenance = read_provenance(file.data)
    if as_json:
        print_json({**values, "provenance": provenance})
        return
    print_fields("", list(_shown(field_rows({**values, **(provenance or {})}))))
    if not provenance:
        echo("the file contains no zrelay data: it says nothing of how it was made")
