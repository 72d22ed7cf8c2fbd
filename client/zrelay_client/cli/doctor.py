"""`zrelay doctor`: checks configuration, connections and models, and suggests fixes."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zrelay_client.cli._options import PATH, Flags, OptionsCommand, json_option, option, run
from zrelay_client.cli._output import echo, print_check, print_json
from zrelay_shared import exits, paths
from zrelay_shared.limits import DEFAULT_PORTS, DEVICES, DTYPES

if TYPE_CHECKING:
    from zrelay_client.doctor import Check
    from zrelay_client.settings import Settings


@click.command("doctor", cls=OptionsCommand, roles=("encoder", "vision", "generator"))
@option("--model", type=PATH, metavar="FOLDER", help="Print how a service with this checkpoint would use the memory.")
@option("--role", type=click.Choice(tuple(DEFAULT_PORTS)), help="The service of --model.")
@option("--device", type=click.Choice(DEVICES), help="Its device.  [default: the first that exists]")
@option("--dtype", type=click.Choice(DTYPES), help="Its data type.  [default: the fastest that fits]")
@json_option
def command(
    model: str | None,
    role: str | None,
    device: str | None,
    dtype: str | None,
    as_json: bool,
    flags: Flags,
    profile: str | None,
) -> int:
    """Check configuration, names, ports, health, versions, models, compatibility and memory, and suggest fixes.

    The exit code is 0 where no check failed; warnings do not count. With --model and --role it checks no service: it
    prints the plan of the memory and the data type, with the limits of the configuration, and loads nothing.
    """
    if (model is None) != (role is None):
        raise click.UsageError("--model and --role belong together: give both, or neither")
    if role is not None:
        flags = {f"{role}.model": model and Path(model).expanduser(), f"{role}.device": device, f"{role}.dtype": dtype}
        return _plan(role, profile, flags, as_json=as_json)
    if device is not None or dtype is not None:
        raise click.UsageError("--device and --dtype belong to a plan: give --model and --role, too")
    from zrelay_client.doctor import FAIL, Check
    from zrelay_client.settings import Settings, unknown_variables
    from zrelay_shared.errors import ZrelayError

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
    checks += run(_check(settings, show=not as_json))
    code = next((check.exit_code for check in checks if check.state == FAIL), exits.OK)
    if as_json:
        print_json({"ok": code == exits.OK, "checks": [_values(check) for check in checks]})
    return code


def _plan(role: str, profile: str | None, flags: Flags, *, as_json: bool) -> int:
    """Prints the plan of a service, or raises OutOfMemory where it does not fit."""
    from zrelay_client.stack.memory import device_of, read_settings
    from zrelay_shared.service.memory_plan import OVERHEAD_BYTES, needs_of, plan

    settings = read_settings(role, profile, flags)
    made = plan(needs_of(settings), device_of(settings.device), check=settings.memory_plan)
    device = made.device
    if as_json:
        sums = {"overhead_bytes": OVERHEAD_BYTES, "room_bytes": made.room_bytes, "reserve_bytes": device.reserve_bytes}
        print_json({"plan": {"dtype": made.dtype, **asdict(made), **sums}})
        return exits.OK
    echo(f"{role} on {device.kind}: {made.dtype}: {made.reason}")
    rows: list[tuple[str, ...]] = [("dtype", "weights", "work", "process", "total")]
    for one in made.options:
        mark = " (chosen)" if one == made.chosen else ""
        sizes = (one.weights_bytes, one.work_bytes, OVERHEAD_BYTES, one.total_bytes)
        rows.append((f"{one.dtype}{mark}", *(f"{size / 2**30:.1f}" for size in sizes)))
    for row in rows:
        echo(f"  {row[0]:<28}" + "".join(f"{cell:>9}" for cell in row[1:]))
    echo(f"GiB; work is {made.work_name}")
    free, reserve = device.free_bytes / 2**30, device.reserve_bytes / 2**30
    echo(f"free: {free:.1f} GiB ({device.limited_by}), {reserve:.1f} GiB of it stay in reserve")
    return exits.OK


async def _check(settings: "Settings", *, show: bool) -> "list[Check]":
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
