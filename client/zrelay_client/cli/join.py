"""`zrelay join`: joins another machine, so that commands here may use its services."""

import re
import sys
from typing import TYPE_CHECKING, Any

import click

from zrelay_client.cli._options import OptionsCommand, json_option, option, quiet_option, run
from zrelay_client.cli._output import Console, print_json
from zrelay_shared import exits, paths
from zrelay_shared.limits import PAIRING_PORT

if TYPE_CHECKING:
    from zrelay_client.info import ServiceStatus
    from zrelay_client.profiles import Box
    from zrelay_shared.security.joining import Membership

_MAX_INPUT = 4096
_PLACE = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\W_][^\s:/\[\]]*))(?::(?P<port>[0-9]{1,5}))?")
_MANY_NAMES = 100


@click.command("join", cls=OptionsCommand)
@click.argument("code", required=False, metavar="[CODE|HOST|-]")
@option("--short", is_flag=True, help="The argument is a host, whose eight digits are asked for.")
@option("--name", metavar="NAME", help="Name of this machine there.  [default: its host name]")
@option("--profile", metavar="NAME", help="Profile that gets the machine.  [default: default]")
@option("--replace", is_flag=True, help="Replace a machine of the same name that was set up anew.")
@option("--forget", metavar="BOX", help="Remove a machine from the profile instead.")
@json_option
@quiet_option
def command(
    code: str | None,
    short: bool,
    name: str | None,
    profile: str | None,
    replace: bool,
    forget: str | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Join the machine that printed CODE with `zrelay pair`, and check that its services admit this one.

    With - the code is read from standard input; without an argument it is asked for. After `zrelay pair --short` the
    argument is HOST or HOST:PORT, and the digits are asked for, or read from standard input. Nothing is sent to the
    other machine before it is verified.
    """
    from zrelay_client import profiles
    from zrelay_client.cli import _machine

    profile = profiles.checked_name(profile or profiles.DEFAULT_PROFILE, "profile", "PROFILE_NAME_INVALID")
    if forget is not None:
        profiles.remove(forget, profile)
        if as_json:
            print_json({"forgotten": forget, "profile": profile})
        return exits.OK
    _check_profile(profile)
    name = name or _machine.default_name()
    with Console(quiet=quiet) as console:
        membership = run(_join(code, name, console, short=short))
        box = _saved(membership, profile, console, replace=replace)
        console.message(
            f"this machine is {membership.name} on {box.name}: {', '.join(sorted(membership.permissions))}; its "
            f"certificate ends {membership.expires:%Y-%m-%d}"
        )
        _compare_clocks(membership, console)
        console.status("calling the services")
        statuses = run(_statuses(box)) if box.endpoints else ()
        for status in statuses:
            console.message(_line(status, box))
        if as_json:
            print_json(_values(membership, box, profile, statuses))
        else:
            console.result(box.name)
    return exits.OK


def _check_profile(profile: str) -> None:
    """Checks that the profile can be read and written, before a code is used up."""
    from zrelay_client import profiles
    from zrelay_shared import private

    private.make_folder(paths.state_dir(), paths.STATE_REMEDY)
    private.make_folder(profiles.profiles_dir(), paths.STATE_REMEDY)
    if profile in profiles.names():
        profiles.load(profile)


async def _join(code: str | None, name: str, console: Console, *, short: bool) -> "Membership":
    from zrelay_shared.errors import invalid_from
    from zrelay_shared.security import joining, pairing_code

    text = _read(code, short=short)
    if short or (code not in (None, "-") and not text.strip().lower().startswith("zr1")):
        host, port = _place(text)
        try:
            digits = pairing_code.parse_short(_read_digits(host))
        except ValueError as error:
            raise invalid_from("digits", error, reason="PAIRING_CODE_INVALID") from error
        console.status(f"joining {host}")
        return await joining.join_with_digits(host, port, digits, name)
    try:
        parsed = pairing_code.parse(text)
    except ValueError as error:
        raise invalid_from("code", error, reason="PAIRING_CODE_INVALID") from error
    console.status(f"joining {parsed.host}")
    return await joining.join_with_code(parsed, name)


def _read(code: str | None, *, short: bool) -> str:
    """Returns the argument, or what stands for it."""
    if code == "-" and not short:
        return sys.stdin.buffer.read(_MAX_INPUT).decode("ascii", "replace")
    if code is not None:
        return code
    if short:
        raise click.UsageError("--short needs the host: zrelay join --short HOST")
    if not sys.stdin.isatty():
        raise click.UsageError("expected the code that `zrelay pair` prints, or - to read it from standard input")
    return str(click.prompt("Code", hide_input=True, err=True))


def _read_digits(host: str) -> str:
    if sys.stdin.isatty():
        return str(click.prompt(f"Digits that `zrelay pair --short` shows on {host}", hide_input=True, err=True))
    return sys.stdin.buffer.readline(_MAX_INPUT).decode("ascii", "replace")


def _place(text: str) -> tuple[str, int]:
    found = _PLACE.fullmatch(text.strip())
    port = int(found["port"] or PAIRING_PORT) if found else 0
    if found is None or not 0 < port <= 0xFFFF:
        from zrelay_shared.errors import invalid

        raise invalid(
            "code",
            "a code that begins with zr1, or HOST or HOST:PORT of `zrelay pair --short`",
            "another text",
            reason="PAIRING_CODE_INVALID",
        )
    return found["v6"] or found["host"], port


def _saved(membership: "Membership", profile: str, console: Console, *, replace: bool) -> "Box":
    """Adds the machine to the profile, and returns it."""
    from zrelay_client import profiles
    from zrelay_client._transport.credentials import TlsOptions

    box = profiles.Box(
        name=_box_name(membership, profile, console, replace=replace),
        endpoints=membership.services,
        tls=TlsOptions(membership.authority, membership.certificate, membership.key),
        hosts=membership.hosts,
    )
    file = profiles.save(box, profile)
    console.message(f"saved {box.name} in the profile {profile} ({file})")
    return box


def _box_name(membership: "Membership", profile: str, console: Console, *, replace: bool) -> str:
    """Returns the name of the machine in the profile. A machine with another authority replaces none of its name.

    Otherwise any machine could take the place of another by its name.
    """
    from zrelay_client import profiles

    if replace or profile not in profiles.names():
        return membership.box
    boxes = {box.name: box.tls.read()[0] for box in profiles.load(profile).boxes}
    for number in range(1, _MANY_NAMES):
        name = membership.box if number == 1 else f"{membership.box[:59]}-{number}"
        if name not in boxes or boxes[name] == membership.authority:
            break
    if name != membership.box:
        console.message(
            f"the profile has another machine named {membership.box}, with another authority: this one is saved as "
            f"{name}; `zrelay join --forget {membership.box}` removes the other"
        )
    return name


def _compare_clocks(membership: "Membership", console: Console) -> None:
    from zrelay_shared.security.joining import CLOCK_S

    ahead = membership.clock_ahead_s
    if abs(ahead) > CLOCK_S:
        which = "ahead of" if ahead > 0 else "behind"
        console.message(
            f"the clock of this machine is {_duration(abs(ahead))} {which} that of {membership.box}: set it (for "
            "example `sudo timedatectl set-ntp true`), or certificates count as expired or not yet valid"
        )


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 60:.0f} minutes"


async def _statuses(box: "Box") -> "tuple[ServiceStatus, ...]":
    """Calls GetInfo of each service, with the new certificate."""
    from zrelay_client.client import AsyncClient

    endpoints: dict[str, Any] = {role: box.endpoint(role) for role in box.endpoints}
    async with AsyncClient(**endpoints) as client:
        return await client.status()


def _line(status: "ServiceStatus", box: "Box") -> str:
    from zrelay_client.cli import _machine
    from zrelay_shared.errors import ModelLoading, Unavailable

    where = f"{status.role} at {status.endpoint}"
    if status.error is None:
        return f"{where}: admits this machine"
    if isinstance(status.error, ModelLoading):
        return f"{where}: admits this machine, and is loading its model"
    if isinstance(status.error, Unavailable):
        (start,) = _machine.start_commands({status.role: box.endpoints[status.role]})
        return f"{where}: does not run yet; start it there: {start}"
    return f"{where}: {status.error.message}"


def _values(
    membership: "Membership", box: "Box", profile: str, statuses: "tuple[ServiceStatus, ...]"
) -> dict[str, Any]:
    return {
        "box": box.name,
        "name": membership.name,
        "profile": profile,
        "permissions": sorted(membership.permissions),
        "expires": membership.expires.isoformat(timespec="seconds"),
        "clock_ahead_s": round(membership.clock_ahead_s, 3),
        "services": {
            each.role: {
                "endpoint": each.endpoint,
                "ok": each.error is None,
                "message": each.error.message if each.error is not None else "",
            }
            for each in statuses
        },
    }
