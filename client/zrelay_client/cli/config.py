"""`zrelay config`: the effective settings and where each comes from; creates and checks the configuration file."""

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zrelay_client.cli._options import complete_profile, json_option, option
from zrelay_client.cli._output import echo, print_json, print_table
from zrelay_shared import paths

if TYPE_CHECKING:
    from zrelay_client.settings import Settings
    from zrelay_shared.service.settings import Setting

_INIT_START = """\
# Configuration of zrelay. Flags and ZRELAY_* variables take precedence over it; `zrelay config` shows every effective
# value and where it comes from. A line that starts with `# key =` shows the default or an example; remove the # to
# change it. A setting that may be none takes the string "none".

# The profile that is used where --profile names none. Without it: the services of `zrelay up` on this machine.
# default_profile = "home"
"""
_ENDPOINTS = {
    "encoder": 'endpoint = "127.0.0.1:7501"',
    "vision": '# endpoint = "127.0.0.1:7502"',
    "generator": 'endpoint = "127.0.0.1:7503"  # several with the same model share the work: ["box1", "box2:7503"]',
}
_REQUESTS = {
    "generate": "How images are generated.",
    "encode": "How prompts are encoded.",
    "encode_images": "How `zrelay vision encode` encodes images.",
    "condition": "How reference images are blended into prompts.",
}
_WIDTH = 118
_HIDDEN = "(hidden)"


_profile = option(
    "--profile",
    metavar="NAME",
    help="Profile of the configuration file.",
    shell_complete=complete_profile,
)


@click.group("config", invoke_without_command=True)
@_profile
@json_option
@click.pass_context
def command(ctx: click.Context, profile: str | None, as_json: bool) -> None:
    """Show every effective setting and where it comes from; or check, find or create the configuration file."""
    if ctx.invoked_subcommand is None:
        _show(profile, as_json=as_json)


@command.command("show", short_help="Show every effective setting.")
@_profile
@json_option
def show(profile: str | None, as_json: bool) -> None:
    """Show every effective setting and where it comes from; the same as `zrelay config`."""
    _show(profile, as_json=as_json)


@command.command("path")
def path() -> None:
    """Print the path of the configuration file, which need not exist."""
    echo(str(paths.config_file()))


@command.command("init")
@option("--force", is_flag=True, help="Replace the file if it exists.")
def init(force: bool) -> None:
    """Write a commented file that lists every setting."""
    from zrelay_client.cli._files import check_file
    from zrelay_shared import atomic

    file = paths.config_file()
    check_file(file, force=force)
    paths.make_folder(file.parent, paths.CONFIG_REMEDY)
    atomic.write_bytes(file, _initial_file().encode())
    echo(str(file))


@command.command("check", short_help="Check the configuration file and the variables.")
def check() -> None:
    """Check the configuration file and the ZRELAY_* variables; unknown keys are errors, unknown variables warnings."""
    from zrelay_client.settings import Settings

    settings = Settings.load().config
    _warn_of_unknown_variables()
    file = paths.config_file()
    echo(f"{file} is valid" if file.exists() else f"{file} does not exist, which is fine")
    echo(f"profiles: {', '.join(settings.profiles) or 'none'}; used: {settings.profile or 'none'}")


def _show(profile: str | None, *, as_json: bool) -> None:
    from zrelay_client.settings import Settings

    loaded = Settings.load(profile)
    settings, rows = loaded.config, _rows(loaded)
    _warn_of_unknown_variables()
    if as_json:
        print_json({name: {"value": value, "from": origin} for name, value, origin in rows})
        return
    settings_by_name = {one.setting.dotted: one.setting for one in settings.settings}
    table = [
        (name, _note(settings_by_name[name], origin) if value is None else _toml(value), origin)
        for name, value, origin in rows
    ]
    print_table(("SETTING", "VALUE", "FROM"), table, wrap=("VALUE", "FROM"))
    if settings.profiles and settings.profile is None:
        names = ", ".join(settings.profiles)
        echo(
            f"no profile is used: {paths.config_file()} has no default_profile; choose one with --profile ({names})",
            err=True,
        )
    elif not paths.config_file().exists():
        echo(f"no configuration file; `zrelay config init` creates {paths.config_file()}", err=True)


def _rows(loaded: "Settings") -> list[tuple[str, object, str]]:
    """Returns (dotted key, value in the user's unit, origin) of every setting.

    The value is None where nothing sets it, and where a user set it to none; the origin distinguishes them. An endpoint
    that is not configured may come from `zrelay up`.
    """
    settings = loaded.config
    rows: list[tuple[str, object, str]] = []
    if settings.profile is not None:
        rows.append(("profile", settings.profile, settings.origins["profile"]))
    endpoints = loaded.texts
    for found in settings.settings:
        one, origin = found.setting, found.origin
        value = None if found.value is None else one.to_user(found.value)
        if one.key == "endpoint" and one.section in endpoints:
            value, origin = endpoints[one.section], loaded.origin(one.section)
        rows.append((one.dotted, _HIDDEN if one.secret and value is not None else value, origin))
    return rows


def _note(one: "Setting", origin: str) -> str:
    """Returns what stands for the value None: that a user set it to none, or the default where nothing sets it."""
    if origin != "default":
        is_default = one.start_default() is None and one.default_text
        return f"none ({one.default_text})" if is_default else "none"
    return f"<{one.default_text}>" if one.default_text else "<required to serve>" if one.required else "<not set>"


def _warn_of_unknown_variables() -> None:
    from zrelay_client.settings import unknown_variables

    for line in unknown_variables():
        echo(f"warning: {line}", err=True)


def _initial_file() -> str:
    """Returns the text of a configuration file in which every default stands as a comment."""
    from zrelay_shared.config import ROLES, settings_of
    from zrelay_shared.requests import REQUEST_CONFIGS

    parts = [_INIT_START]
    for role in ROLES:
        parts.append(
            f"\n[profile.home.{role}]\n#   Where clients find the service: HOST or HOST:PORT.\n{_ENDPOINTS[role]}\n"
        )
        parts.append(f"\n# Settings of `zrelay serve {role}` on this machine:\n")
        parts += [_commented(one) for one in settings_of(role) if one.key != "endpoint"]
    parts.append("\n# How clients connect where no machine was joined with `zrelay join`.\n[profile.home.connection]\n")
    parts += [_commented(one) for one in settings_of("connection")]
    for section in REQUEST_CONFIGS:
        parts.append(f"\n# {_REQUESTS[section]}\n[{section}]\n")
        parts += [_commented(one) for one in settings_of(section)]
    return "".join(parts)


def _commented(one: "Setting") -> str:
    """Returns the description of a setting and its default, as comments."""
    text = one.description
    if one.default is None:
        text += " Required." if one.required else f" Default: {one.default_text or 'none'}."
    lines = textwrap.wrap(text, _WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    return "".join(f"#   {line}\n" for line in lines) + f"# {one.key} = {_toml(one.example)}\n"


def _toml(value: object) -> str:
    """Writes a value as TOML does."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False)
    return str(value)
