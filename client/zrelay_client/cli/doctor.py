"""`zrelay doctor`: every hop, with the fix for what is wrong."""

import asyncio
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from zrelay_client.cli._flags import endpoint_options
from zrelay_client.settings import Settings, unknown_variables
from zrelay_shared import exits, paths
from zrelay_shared.errors import ZrelayError

if TYPE_CHECKING:
    from zrelay_client.doctor import Check


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@endpoint_options("encoder", "vision", "generator")
def command(as_json: bool, encoder: str | None, vision: str | None, generator: str | None, profile: str | None) -> int:
    """Check configuration, names, ports, health, versions, models, fit and memory, and say how to mend what is wrong.

    Exits with 0 where nothing failed; warnings do not count.
    """
    from zrelay_client.doctor import FAIL, Check

    checks: list[Check] = []
    flags = {"encoder.endpoint": encoder, "vision.endpoint": vision, "generator.endpoint": generator}
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
        said = {"ok": code == exits.OK, "checks": [_plain(check) for check in checks]}
        click.echo(json.dumps(said, ensure_ascii=False))
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
    click.echo(f"{check.state:4}  {check.name}: {check.message}")
    if check.fix:
        click.echo(f"      fix: {check.fix}")


def _plain(check: "Check") -> dict[str, object]:
    return {key: value for key, value in asdict(check).items() if key != "exit_code"}
