"""`zrelay doctor`: checks configuration, connections and models, and suggests fixes."""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from zrelay_client import _settings
from zrelay_client.cli._options import Flags, OptionsCommand, json_option
from zrelay_client.cli._output import print_check, print_json
from zrelay_shared import exits, paths
from zrelay_shared.errors import ZrelayError

if TYPE_CHECKING:
    from zrelay_client._checks import Check


@click.command("doctor", cls=OptionsCommand, roles=("encoder", "vision", "generator"))
@json_option
def command(as_json: bool, flags: Flags, profile: str | None) -> int:
    """Check configuration, names, ports, health, versions, models, compatibility and memory, and suggest fixes.

    The exit code is 0 where no check failed; warnings do not count.
    """
    from zrelay_client._checks import FAIL, Check

    checks: list[Check] = []
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
        print_json({"ok": code == exits.OK, "checks": [_values(check) for check in checks]})
    return code


async def _check(targets: Mapping[str, str], *, show: bool) -> "list[Check]":
    from zrelay_client._checks import Check, check_encode, check_pair, check_service
    from zrelay_client._checks_alike import check_alike
    from zrelay_client._checks_vision import check_vision
    from zrelay_client._endpoints import split_endpoints
    from zrelay_client._info import EncoderInfo, GeneratorInfo, ServiceInfo, VisionInfo

    checks: list[Check] = []
    infos: dict[str, list[ServiceInfo]] = {role: [] for role in targets}

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
                    infos[role].append(found)
    encoders = [info for info in infos.get("encoder", ()) if isinstance(info, EncoderInfo)]
    generators = [info for info in infos.get("generator", ()) if isinstance(info, GeneratorInfo)]
    for check in check_alike(encoders, generators):
        add(check)
    generator = generators[0] if generators else None
    for vision in (info for info in infos.get("vision", ()) if isinstance(info, VisionInfo)):
        for check in check_vision(vision, encoders[0] if encoders else None, generator):
            add(check)
    if encoders:
        if generator is not None:
            add(check_pair(encoders[0], generator))
        if encoders[0].ready:
            add(await check_encode(encoders[0], generator))
    return checks


def _print(check: "Check") -> None:
    print_check(check.state, f"{check.name}: {check.message}", check.fix)


def _values(check: "Check") -> dict[str, object]:
    return {key: value for key, value in asdict(check).items() if key != "exit_code"}
