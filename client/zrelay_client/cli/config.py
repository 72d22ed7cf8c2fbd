"""`zrelay config`: the settings, where each came from, and a file to begin with."""

import json
from dataclasses import fields

import click

from zrelay_client import _settings
from zrelay_client.cli._flags import profile_option
from zrelay_client.cli._targets import check_file
from zrelay_shared import atomic, paths
from zrelay_shared.config import ROLES, Config

_EXAMPLE = """\
# zrelay's configuration. Flags and ZRELAY_* variables win over it; `zrelay config` shows what applies and why.

# The profile that is used where --profile names none. Without it: the services of `zrelay up` on this machine.
# default_profile = "home"

# Where this machine finds the services. HOST alone takes the role's own port.
[profile.home.encoder]
endpoint = "127.0.0.1:7501"

[profile.home.generator]
endpoint = "127.0.0.1:7503"  # several that serve the same model share the work: ["box1", "box2:7503"]

# How `zrelay serve ROLE` runs a service on this machine.
# [profile.home.encoder]
# model = "/models/Z-Image-Turbo"
# listen = "127.0.0.1:7501"
# device = "mps"
# dtype = "bfloat16"
# log_level = "info"
# grace_s = 30

# What `zrelay generate` asks for where no flag says otherwise. Absent: the generator's checkpoint decides.
[generate]
# width = 1024
# height = 1024
# num_inference_steps = 8
# guidance_scale = 0.0
# shift = 3.0
# format = "png"
# quality = 95
# timeout_s = 1800
"""


@click.group("config", invoke_without_command=True)
@profile_option("Show this profile.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def command(ctx: click.Context, profile: str | None, as_json: bool) -> None:
    """Show the effective settings and where each came from; or check, locate or begin the file."""
    if ctx.invoked_subcommand is not None:
        return
    settings = _settings.load(profile)
    rows = _rows(settings)
    if as_json:
        click.echo(json.dumps({name: {"value": value, "from": origin} for name, value, origin in rows}))
        return
    width = max((len(name) for name, _, _ in rows), default=0)
    for name, value, origin in rows:
        click.echo(f"{name:{width}}  {value}   ({origin})")
    if not rows and settings.profiles:
        names = ", ".join(settings.profiles)
        click.echo(
            f"nothing applies: {paths.config_file()} names no default_profile; choose one with --profile ({names})"
        )
    elif not rows:
        click.echo(f"nothing is configured; `zrelay config init` begins {paths.config_file()}")


@command.command("path")
def path() -> None:
    """Print where the file is, or would be."""
    click.echo(str(paths.config_file()))


@command.command("init")
@click.option("--force", is_flag=True, help="Replace the file where it exists.")
def init(force: bool) -> None:
    """Write a commented file to begin with."""
    file = paths.config_file()
    check_file(file, force=force)
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(file, _EXAMPLE.encode())
    click.echo(str(file))


@command.command("check")
def check() -> None:
    """Check the file and the ZRELAY_* variables; refuses what it does not know."""
    settings = _settings.load()
    for line in _settings.strange_variables():
        click.echo(f"warning: {line}", err=True)
    file = paths.config_file()
    click.echo(f"{file} is fine" if file.exists() else f"{file} does not exist; nothing is wrong with that")
    click.echo(f"profiles: {', '.join(settings.profiles) or 'none'}; used: {settings.profile or 'none'}")


def _rows(settings: Config) -> list[tuple[str, object, str]]:
    """(name, value, origin) of every setting that is set, and of the endpoints that `zrelay up` supplies."""
    rows: list[tuple[str, object, str]] = []
    if settings.profile is not None:
        rows.append(("profile", settings.profile, settings.origins["profile"]))
    found = _settings.endpoints(settings)
    for section in (*ROLES, "generate"):
        part = settings.generate if section == "generate" else settings.service(section)
        for item in fields(part):
            name, value = f"{section}.{item.name}", getattr(part, item.name)
            if value is not None:
                rows.append((name, value, settings.origins[name]))
            elif item.name == "endpoint" and section in found:
                rows.append((name, found[section].target, found[section].origin))
    return rows
