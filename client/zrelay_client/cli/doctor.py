"""`zrelay doctor`: checks configuration, connections and models, and suggests fixes."""

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from zrelay_client.cli._options import Flags, OptionsCommand, json_option
from zrelay_client.cli._output import print_check, print_json
from zrelay_client.settings import Settings, unknown_variables
from zrelay_shared import exits, paths
from zrelay_shared.errors import ZrelayError

if TYPE_CHECKING:
    from zrelay_client.doctor import Check


@click.command("doctor", cls=OptionsCommand, roles=("encoder", "vision", "generator"))
@json_option
def command(as_json: bool, flags: Flags, profile: str | None) -> int:
    """Check configuration, names, ports, health, versions, models, compatibility and memory, and suggest fixes.

    The exit code is 0 where no check failed; warnings do not count.
    """
    from zrelay_client.doctor import FAIL, Check

    checks: list[Check] = []
    settings = Settings()
    try:
        settings = Settings.load(profile, flags)
        file = paths.config_file()
        checks.append(Check("configuration", "ok", f"{file}" if file.exists() else f"none ({file} does not exist)"))
        checks += [Check("environment", "warn", line, "unset or correct it") for line in unknown_variables()]
        settings.require("encoder", "generator")
    except ZrelayError as error:
        checks.append(Check("configuration", FAIL, error.message, exit_code=exits.code_of(error)))
    if not as_json:
        for check in checks:
            _print(check)
    checks += asyncio.run(_check(settings, show=not as_json))
    code = next((check.exit_code for check in checks if check.state == FAIL), exits.OK)
    if as_json:
        print_json({"ok": code == exits.OK, "checks": [_values(check) for check in checks]})
    return code


async def _check(settings: Settings, *, show: bool) -> "list[Check]":
    from zrelay_client.doctor import check_services

    checks = []
    async for check in check_services(settings):
        checks.append(check)
        if show:
            _print(check)
    return checks


def _print(check: "Check") -> None:
    print_check(check.state, f"{check.name}: {check.message}", check.fix)


def _values(check: "Check") -> dict[str, object]:
    return {key: value for key, value in asdict(check).items() if key != "exit_code"}
