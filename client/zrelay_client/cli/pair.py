"""`zrelay pair`: admits another machine to this machine's services, and lists, renews and revokes what was issued."""

import ipaddress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from zrelay_client.cli._options import Integer, Number, OptionsCommand, option, quiet_option, run
from zrelay_client.cli._output import Console, echo, print_json, print_table
from zrelay_shared import exits, paths
from zrelay_shared.limits import DEFAULT_PORTS, PAIRING_PORT
from zrelay_shared.signals import TERMINATING, on_signals

if TYPE_CHECKING:
    from zrelay_client.settings import Settings
    from zrelay_shared.security.installation import Installation
    from zrelay_shared.security.permissions import Permission
    from zrelay_shared.service.pairing import PairingOptions, PairingSession

_LOOK_S = 0.5


@click.command("pair", cls=OptionsCommand)
@option("--short", is_flag=True, help="Print eight digits instead of a long code, for a person to type.")
@option("--name", metavar="NAME", help="Name of this machine.  [default: its host name]")
@option(
    "--address",
    metavar="HOST",
    help="Host name or address by which the other machine reaches this one.  [default: its address on the network]",
)
@option("--port", type=Integer(0, 65535), default=PAIRING_PORT, help=f"Port of the pairing.  [default: {PAIRING_PORT}]")
@option("--minutes", type=Number(0.01, 60), default=10.0, help="Minutes for which the code is valid.  [default: 10]")
@option(
    "--permissions",
    metavar="LIST",
    help="What the other machine or token may do: encode, vision, generate, administer, or all; separated by commas.  "
    "[default: encode,generate,vision]",
)
@option(
    "--serves",
    metavar="LIST",
    help="Services that the other machine will find here: encoder, vision, generator; separated by commas.  "
    "[default: those that are configured or run, else encoder,generator]",
)
@option("--list", "list_all", is_flag=True, help="List the machines and tokens that this machine admits.")
@option(
    "--renew",
    is_flag=False,
    flag_value="",
    metavar="[NAME]",
    help="Renew the certificate of this machine's services; with NAME, pair again with that machine.",
)
@option("--revoke", metavar="NAME", help="Revoke the certificates and tokens of a name.")
@option("--token", metavar="NAME", help="Make a bearer token for a person or script, and print it once.")
@option(
    "--overlap",
    type=Number(0, 24 * 365),
    metavar="HOURS",
    help="Hours for which the earlier tokens of --token remain valid.  [default: 0]",
)
@option("--json", "as_json", is_flag=True, help="Print JSON objects to standard output, one a line.")
@quiet_option
def command(
    short: bool,
    name: str | None,
    address: str | None,
    port: int,
    minutes: float,
    permissions: str | None,
    serves: str | None,
    list_all: bool,
    renew: str | None,
    revoke: str | None,
    token: str | None,
    overlap: float | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Admit one machine to the services of this one: print a one-time code, which `zrelay join` takes there.

    The code is valid for ten minutes and for one machine; five wrong attempts revoke it. The first call makes a
    certificate authority for this installation, and a certificate for its services, which then listen on the network
    with TLS. Services that run already load certificates and lists anew. Run it as the user of the services.
    """
    from zrelay_shared import private
    from zrelay_shared.security.installation import Installation

    modes = [list_all, renew is not None, revoke is not None, token is not None]
    if sum(modes) > 1:
        raise click.UsageError("--list, --renew, --revoke and --token exclude each other")
    if overlap is not None and token is None:
        raise click.UsageError("--overlap belongs to --token")
    private.make_folder(paths.state_dir(), paths.STATE_REMEDY)
    installation = Installation(paths.state_dir() / "security")
    if list_all:
        _list(installation, as_json=as_json)
        return exits.OK
    if revoke is not None:
        return _revoke(installation, revoke, as_json=as_json)
    allowed = _permissions(permissions)
    if token is not None:
        return _token(installation, token, allowed, overlap or 0.0, as_json=as_json)
    if renew == "":
        return _renew(installation, as_json=as_json)
    options = _options(
        installation,
        name,
        address,
        port,
        minutes,
        allowed,
        _served(serves),
        member=renew or "",
        short=short,
        quiet=quiet,
    )
    with Console(quiet=quiet) as console:
        return run(_pair(installation, options, console, as_json=as_json))


def _options(
    installation: "Installation",
    name: str | None,
    address: str | None,
    port: int,
    minutes: float,
    permissions: "frozenset[Permission] | None",
    serves: tuple[str, ...],
    *,
    member: str,
    short: bool,
    quiet: bool,
) -> "PairingOptions":
    """Makes what is missing of the installation, and returns the options of the pairing."""
    from zrelay_client import profiles
    from zrelay_client.cli import _machine
    from zrelay_client.settings import Settings
    from zrelay_shared.errors import invalid_from
    from zrelay_shared.security.certificates import CertificateInvalid, checked_server_name
    from zrelay_shared.security.permissions import CALLER, parse_permissions
    from zrelay_shared.service.listening import ListenAddress
    from zrelay_shared.service.pairing import PairingOptions

    box = profiles.checked_name(name or _machine.default_name(), "name", "NAME_INVALID")
    if member:
        permissions = permissions or parse_permissions(",".join(installation.latest(member).permissions))
    host = _host(address, quiet=quiet)
    try:
        checked_server_name(host)
        installation.prepare(box, _machine.server_names(host))
    except CertificateInvalid as error:
        raise invalid_from("address", error) from error
    return PairingOptions(
        box=box,
        host=host,
        services=_services(Settings.load(), host, serves),
        listen=ListenAddress(_machine.bind_host(host), port),
        permissions=permissions or CALLER,
        short=short,
        member=member,
        lifetime_s=minutes * 60,
    )


def _host(address: str | None, *, quiet: bool) -> str:
    """Returns the host by which the other machine reaches this one."""
    from zrelay_client.cli import _machine
    from zrelay_shared.errors import FailedPrecondition

    if address is not None:
        try:
            return str(ipaddress.ip_address(address.strip("[]")))
        except ValueError:
            return address.lower()
    found = _machine.lan_address()
    if found is None:
        raise FailedPrecondition(
            "this machine has no address on a network: connect it, or name the host by which others reach it with "
            "--address HOST",
            reason="ADDRESS_UNKNOWN",
        )
    if not quiet:
        echo(f"this machine's address on the network is {found}; --address names another", err=True)
    return found


def _services(settings: "Settings", host: str, serves: tuple[str, ...]) -> dict[str, str]:
    """Returns role -> HOST:PORT of the services that this machine has or will have."""
    from zrelay_client._transport.endpoint import Endpoint
    from zrelay_client.cli import _machine

    values = {one.setting.dotted: one.value for one in settings.config.settings}
    ports, roles = {}, []
    for role, default in DEFAULT_PORTS.items():
        port = str(values.get(f"{role}.listen")).rpartition(":")[2]
        ports[role] = int(port) if port.isascii() and port.isdecimal() and int(port) else default
        running = Endpoint.parse(role, settings.running[role]) if role in settings.running else None
        if running is not None and not running.is_local and running.host_and_port is not None:
            ports[role] = running.host_and_port[1]  # of `zrelay up` on the network
        configured = any(values.get(f"{role}.{key}") is not None for key in ("model", "qwen3_vl", "siglip"))
        if configured or _answers("127.0.0.1", ports[role]) or _answers(host, ports[role]):
            roles.append(role)
    return {role: _machine.place(host, ports[role]) for role in serves or roles or ("encoder", "generator")}


def _answers(host: str, port: int) -> bool:
    """Returns whether a program listens there."""
    import socket

    try:
        socket.create_connection((host, port), timeout=_LOOK_S).close()
    except OSError:
        return False
    return True


def _served(serves: str | None) -> tuple[str, ...]:
    roles = tuple(dict.fromkeys(part.strip() for part in (serves or "").split(",") if part.strip()))
    if serves is not None and (not roles or not set(roles) <= set(DEFAULT_PORTS)):
        raise click.UsageError(f"--serves: expected some of {', '.join(DEFAULT_PORTS)}, got {serves[:60]!r}")
    return roles


def _permissions(text: str | None) -> "frozenset[Permission] | None":
    from zrelay_shared.security.permissions import parse_permissions

    try:
        return None if text is None else parse_permissions(text)
    except ValueError as error:
        raise click.UsageError(f"--permissions: {error}") from error


async def _pair(installation: "Installation", options: "PairingOptions", console: Console, *, as_json: bool) -> int:
    import asyncio

    from zrelay_shared.service.pairing import PairingSession

    session = PairingSession(installation, options)
    stop = asyncio.Event()
    with on_signals(("SIGINT", *TERMINATING), stop.set):
        await session.start()
        try:
            _show(session, options, console, as_json=as_json)
            return await _wait(session, options, stop, console, as_json=as_json)
        finally:
            console.clear()
            await session.stop()


def _show(session: "PairingSession", options: "PairingOptions", console: Console, *, as_json: bool) -> None:
    """Prints the code and how to use it."""
    from zrelay_client.cli import _machine

    place = _machine.place(options.host, session.port)
    if as_json:
        services = dict(options.services)
        print_json({"code": session.code, "address": place, "valid_s": options.lifetime_s, "services": services})
    else:
        console.result(session.code)
        if not options.short:
            _show_qr(session.code)
    where = options.host if session.port == PAIRING_PORT else place
    if options.short:
        console.message(f"on the other machine: zrelay join {where}, then type the digits")
    else:
        console.message(
            "on the other machine: zrelay join CODE (or `zrelay join -`, which reads it from standard input)"
        )
    told = ", ".join(f"{role} {endpoint}" for role, endpoint in options.services.items())
    console.message(f"it will find here: {told} (--serves changes this)")


async def _wait(
    session: "PairingSession", options: "PairingOptions", stop: Any, console: Console, *, as_json: bool
) -> int:
    """Waits for the machine, and shows the time that is left; returns the exit code."""
    import asyncio

    from zrelay_client.cli import _machine

    waiting, stopped = asyncio.create_task(session.wait()), asyncio.create_task(stop.wait())
    left = session.attempts_left
    while not waiting.done() and not stop.is_set():
        minutes, seconds = divmod(int(session.left_s), 60)
        done = options.lifetime_s - session.left_s
        note = f"{minutes}:{seconds:02} left"
        console.status("waiting for a machine", completed=done, total=options.lifetime_s, note=note)
        await asyncio.wait({waiting, stopped}, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        if session.attempts_left < left:
            left = session.attempts_left
            more = f"after {left} more the code is revoked" if left else "the code is revoked"
            console.message(f"a wrong attempt; {more}")
    stopped.cancel()
    if not waiting.done():
        waiting.cancel()
        console.message("interrupted: the code is no longer valid")
        return exits.INTERRUPTED
    member = waiting.result()
    if as_json:
        print_json({"joined": member.name, "peer": member.peer, "expires": member.expires})
    allowed = ", ".join(sorted(options.permissions))
    console.message(
        f"{member.name} has joined from {member.peer}: {allowed}; its certificate ends {member.expires[:10]}"
    )
    console.message(f"if that was another machine: zrelay pair --revoke {member.name}")
    missing = {
        role: endpoint
        for role, endpoint in options.services.items()
        if not _answers(options.host, int(endpoint.rpartition(":")[2]))
    }
    if missing:
        console.message("start what does not listen on the network yet:")
    for line in _machine.start_commands(missing):
        console.message(f"  {line}")
    return exits.OK


def _show_qr(code: str) -> None:
    """Prints the code as a QR code where standard output is a terminal that can show it."""
    import io
    import shutil
    import sys

    if not sys.stdout.isatty() or "utf" not in (sys.stdout.encoding or "").lower():
        return
    import segno

    drawn = io.StringIO()
    segno.make(code.upper(), error="l", micro=False).terminal(drawn, border=2, compact=True)
    lines = drawn.getvalue().splitlines()
    columns, rows = shutil.get_terminal_size()
    if max(map(len, lines)) <= columns and len(lines) < rows:
        echo("\n".join(lines))


def _list(installation: "Installation", *, as_json: bool) -> None:
    """Prints who is admitted."""
    from zrelay_shared.security import certificates

    now = datetime.now(UTC).isoformat(timespec="seconds")
    rows = []
    if installation.prepared:
        found = certificates.describe(installation.server_pair[1])
        ends = found.not_after.isoformat(timespec="seconds")
        rows.append(_row(found.name, "server", (), found.not_before.isoformat(timespec="seconds"), ends, "", now))
    for member in installation.members():
        rows.append(
            _row(member.name, "machine", member.permissions, member.issued, member.expires, member.revoked, now)
        )
    for token in installation.tokens():
        rows.append(_row(token.name, "token", token.permissions, token.created, token.expires, "", now))
    if as_json:
        print_json({"admitted": rows})
        return
    if not rows:
        echo("no machine is admitted; `zrelay pair` admits one", err=True)
        return
    keys = ("name", "kind", "permissions", "issued", "expires", "state")
    shown = [tuple(_cell(row[key]) for key in keys) for row in rows]
    print_table(tuple(key.upper() for key in keys), shown, wrap=("PERMISSIONS",))


def _row(
    name: str, kind: str, permissions: tuple[str, ...], issued: str, expires: str, revoked: str, now: str
) -> dict[str, Any]:
    state = "revoked" if revoked else "expired" if expires and expires <= now else "valid"
    return {
        "name": name,
        "kind": kind,
        "permissions": list(permissions),
        "issued": issued,
        "expires": expires,
        "state": state,
    }


def _cell(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else str(value).removesuffix("+00:00").replace("T", " ")


def _revoke(installation: "Installation", name: str, *, as_json: bool) -> int:
    count = installation.revoke(name)
    if as_json:
        print_json({"revoked": name, "count": count})
    echo(f"{name} is no longer admitted; services that run refuse it within a second", err=True)
    return exits.OK


def _token(
    installation: "Installation", name: str, allowed: "frozenset[Permission] | None", hours: float, *, as_json: bool
) -> int:
    from zrelay_shared.errors import invalid_from
    from zrelay_shared.security.certificates import CertificateInvalid
    from zrelay_shared.security.permissions import CALLER

    try:
        token = installation.new_token(name, allowed or CALLER, overlap=timedelta(hours=hours))
    except CertificateInvalid as error:
        raise invalid_from("token", error, reason="NAME_INVALID") from error
    if as_json:
        print_json({"name": name, "token": token, "permissions": sorted(allowed or CALLER)})
    else:
        echo(token)
    ending = f"; earlier ones of {name} end in {hours:g} hours" if hours else f"; earlier ones of {name} have ended"
    echo(f"this token is not shown again: keep it in a file that only its user can read{ending}", err=True)
    return exits.OK


def _renew(installation: "Installation", *, as_json: bool) -> int:
    found = installation.renew_server()
    ends = found.not_after.isoformat(timespec="seconds")
    if as_json:
        print_json({"renewed": found.name, "expires": ends, "hosts": list(found.server_names)})
    echo(f"the certificate of {found.name} is renewed until {ends[:10]}; services that run load it anew", err=True)
    return exits.OK
