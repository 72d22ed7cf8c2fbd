"""`zrelay info`: what the services are, or what an image file says of itself."""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zrelay_client.cli._flags import PLACE, endpoint_options
from zrelay_client.settings import Settings
from zrelay_shared import exits

if TYPE_CHECKING:
    from zrelay_client.info import ServiceInfo, ServiceStatus


@click.command("info")
@click.argument("image", type=PLACE, required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@endpoint_options("encoder", "vision", "generator")
def command(
    image: str | None,
    as_json: bool,
    encoder: str | None,
    vision: str | None,
    generator: str | None,
    profile: str | None,
) -> int:
    """Show what the configured services are, every endpoint of each; with IMAGE, how that picture was made."""
    if image is not None:
        _show(_of_image(Path(image)), as_json=as_json)
        return exits.OK
    flags = {"encoder.endpoint": encoder, "vision.endpoint": vision, "generator.endpoint": generator}
    settings = Settings.load(profile, flags)
    if not settings.texts:
        settings.require("encoder", "generator")
    said = asyncio.run(_ask(settings))
    failures = [status.error for status in said if status.error is not None]
    if len(failures) == len(said):
        raise failures[0]
    if as_json:
        click.echo(json.dumps(_plain(said), ensure_ascii=False))
    else:
        click.echo("\n\n".join(_table(status.info) if status.info is not None else _silent(status) for status in said))
    return exits.code_of(failures[0]) if failures else exits.OK


async def _ask(settings: Settings) -> "tuple[ServiceStatus, ...]":
    from zrelay_client.client import AsyncClient

    async with AsyncClient.from_settings(settings) as client:
        return await client.status()


def _plain(said: "tuple[ServiceStatus, ...]") -> dict[str, Any]:
    """Role -> its first service; where one has several endpoints or does not answer, `endpoints` has them all."""
    services: dict[str, Any] = {}
    for status in said:
        if status.info is not None:
            services.setdefault(status.role, asdict(status.info))
    if len(services) < len(said):
        services["endpoints"] = [
            {
                "role": status.role,
                "endpoint": status.endpoint,
                "error": status.error.message if status.error is not None else None,
                "info": asdict(status.info) if status.info is not None else None,
            }
            for status in said
        ]
    return services


def _silent(status: "ServiceStatus") -> str:
    return f"{status.role} at {status.endpoint}: {status.error.message if status.error is not None else ''}"


def _of_image(file: Path) -> dict[str, Any]:
    from zrelay_client.provenance import read_provenance

    data = file.read_bytes()
    head = {"file": str(file), "bytes": len(data), "file_sha256": hashlib.sha256(data).hexdigest()}
    return {**head, "provenance": read_provenance(data)}


def _show(said: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(said, ensure_ascii=False))
        return
    provenance = said.pop("provenance")
    click.echo("\n".join(_rows(said)))
    click.echo("\n".join(_rows(provenance)) if provenance else "it says nothing of how it was made")


def _table(service: "ServiceInfo") -> str:
    ready = "ready" if service.ready else "not ready"
    head = f"{service.role} at {service.endpoint}: {ready}, zrelay {service.version}, contract {service.contract}"
    values = {item.name: getattr(service, item.name) for item in fields(service)}
    for shown in ("role", "endpoint", "version", "contract", "ready"):
        del values[shown]
    available = [feature for feature in values.pop("features") if feature.available]
    values["features"] = ", ".join(feature.name for feature in available) or "none"
    return "\n".join([head, *_rows(values, indent="  ")])


def _rows(values: Mapping[str, Any], indent: str = "") -> list[str]:
    """`name  value` lines, tables inside one another indented."""
    width = max((len(name) for name in values), default=0)
    lines = []
    for name, value in values.items():
        plain = {item.name: getattr(value, item.name) for item in fields(value)} if is_dataclass(value) else value
        if isinstance(plain, Mapping) and plain:
            lines += [f"{indent}{name}", *_rows(plain, indent + "  ")]
        else:
            lines.append(f"{indent}{name:{width}}  {_spoken(plain)}")
    return lines


def _spoken(value: object) -> str:
    if value is None or (isinstance(value, str | list | tuple | Mapping) and not value):
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
