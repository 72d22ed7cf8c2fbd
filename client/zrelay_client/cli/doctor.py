"""`zrelay doctor`: every hop, with the fix for what is wrong."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from zrelay_client import _settings
from zrelay_client.cli._flags import endpoint_options
from zrelay_shared import exits, paths
from zrelay_shared.errors import ZrelayError

if TYPE_CHECKING:
    from zrelay_client._checks import Check


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@endpoint_options("encoder", "vision", "generator")
def command(as_json: bool, encoder: str | None, vision: str | None, generator: str | None, profile: str | None) -> int:
    """Check configuration, names, ports, health, versions, models, fit and memory, and say how to mend what is wrong.

    Exits with 0 where nothing failed; warnings do not count.
    """
    from zrelay_client._checks import FAIL, Check

    checks: list[Check] = []
    flags = {"encoder.endpoint": encoder, "vision.endpoint": vision, "generator.endpoint": generator}
    found: dict[str, _settings.Endpoint] = {}
    try:
        settings = _settings.load(profile, flags)
        found = _settings.endpoints(settings)
        file = paths.config_file()
        checks.append(Check("configuration", "ok", f"{file}" if file.exists() else f"none ({file} does not exist)"))
        checks += [Check("environment", "warn", line, "unset or correct it") for line in _settings.unknown_variables()]
        _settings.require(found, settings, "encoder", "generator")
    except ZrelayError as error:
        checks.append(Check("configuration", FAIL, error.message, exit_code=exits.code_of(error)))
    if not as_json:
        for check in checks:
            _print(check)
    targets = {role: endpoint.target for role, endpoint in found.items()}
    checks += asyncio.run(_check(targets, show=not as_json))
    code = next((check.exit_code for check in checks if check.state == FAIL), exits.OK)
    if as_json:
        said = {"ok": code == exits.OK, "checks": [_plain(check) for check in checks]}
        click.echo(json.dumps(said, ensure_ascii=False))
    return code


async def _check(targets: Mapping[str, str], *, show: bool) -> "list[Check]":
    from zrelay_client._checks import Check, check_encode, check_pair, check_service
    from zrelay_client._checks_alike import check_alike
    from zrelay_client._checks_vision import check_vision
    from zrelay_client._endpoints import split_endpoints
    from zrelay_client._info import EncoderInfo, GeneratorInfo, ServiceInfo, VisionInfo

    checks: list[Check] = []
    said: dict[str, list[ServiceInfo]] = {role: [] for role in targets}

    def add(check: Check) -> None:
        checks.append(check)
        if show:
            _print(check)

    for role, target in targets.items():
        several = split_endpoints(target)
        for one in several:
            async for found in check_service(role, one, name=f"{role} {one}" if len(several) > 1 else role):
                if isinstance(found, Check):
                    add(found)
                else:
                    said[role].append(found)
    encoders = [found for found in said.get("encoder", ()) if isinstance(found, EncoderInfo)]
    painters = [found for found in said.get("generator", ()) if isinstance(found, GeneratorInfo)]
    for check in check_alike(encoders, painters):
        add(check)
    painter = painters[0] if painters else None
    for seer in (found for found in said.get("vision", ()) if isinstance(found, VisionInfo)):
        for check in check_vision(seer, encoders[0] if encoders else None, painter):
            add(check)
    if encoders:
        if painter is not None:
            add(check_pair(encoders[0], painter))
        if encoders[0].ready:
            add(await check_encode(encoders[0], painter))
    return checks


def _print(check: "Check") -> None:
    click.echo(f"{check.state:4}  {check.name}: {check.message}")
    if check.fix:
        click.echo(f"      fix: {check.fix}")


def _plain(check: "Check") -> dict[str, object]:
    return {key: value for key, value in asdict(check).items() if key != "exit_code"}
