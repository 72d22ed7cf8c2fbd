"""The command line of a service, made from its settings class, and the start of its process."""

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from zrelay_shared import config, descriptors, exits, paths, private, texts
from zrelay_shared.connection import joined_profiles
from zrelay_shared.errors import InvalidArgument, ZrelayError
from zrelay_shared.service import process, securing
from zrelay_shared.service.options import SettingOption
from zrelay_shared.service.roles import ServiceConfig
from zrelay_shared.service.settings import SERVICE_GROUPS, describe

if TYPE_CHECKING:
    from zrelay_shared.service.lifecycle import Service

log = logging.getLogger(__name__)
S = TypeVar("S", bound=ServiceConfig)


def service_command(kind: type[S], build: Callable[[S], "Service"], *, help: str) -> click.Command:
    """Makes the command `python -m zrelay_<role>`: reads the settings, builds the service and serves it.

    Args:
        kind: Settings class of the service.
        build: Checks the model's folder and makes the service. It imports torch, so nothing heavy is imported before
            the settings are known to be valid.
        help: What the service does.
    """

    def run(profile: str | None, **values: Any) -> NoReturn:
        sys.exit(start(lambda: load_settings(kind, profile, values), build))

    prog_name = f"python -P -m zrelay_{kind.role}"
    return SettingsCommand(prog_name, kind=kind, callback=run, help=help)


class SettingsCommand(click.Command):
    """A command with one option for each setting of a service, listed in groups."""

    def __init__(self, name: str, *, kind: type[ServiceConfig], callback: Callable[..., Any], help: str) -> None:
        """Makes the command.

        Args:
            name: Name of the command, shown in its usage line.
            kind: Settings class.
            callback: Called with `profile` and a value for each field of the class: None for options not given, `none`
                for the value None.
            help: What the service does.
        """
        self.settings = describe(kind, kind.role)
        profile = click.Option(
            ["--profile"], metavar="NAME", help="Profile of the configuration file.", shell_complete=_complete_profile
        )
        origins = (
            f"Each option can also be set by the variable ZRELAY_{kind.role.upper()}_<OPTION> or in the table "
            f"[profile.NAME.{kind.role}] of the configuration file; `zrelay config` shows the effective values. "
            "An option that lists none takes that word, which resets what the variable or the file sets."
        )
        options: list[click.Parameter] = [SettingOption(one) for one in self.settings]
        super().__init__(name, callback=callback, params=[*options, profile], help=f"{help}\n\n{origins}")

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Uses the command's own name in the usage line where it is the program."""
        return super().make_context(info_name if parent is not None else self.name, args, parent, **extra)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the options under the headings of their groups."""
        rest = [param for param in self.get_params(ctx) if not isinstance(param, SettingOption)]
        groups: dict[str, list[click.Parameter]] = {group: [] for group in SERVICE_GROUPS}
        for param in self.get_params(ctx):
            if isinstance(param, SettingOption):
                groups[param.setting.group].append(param)
        for group, params in (*groups.items(), ("Other", rest)):
            if records := [record for param in params if (record := param.get_help_record(ctx)) is not None]:
                with formatter.section(group):
                    formatter.write_dl(records)


def load_settings(kind: type[S], profile: str | None, values: dict[str, Any]) -> S:
    """Reads the settings of a service: flags first, then variables, then the configuration file.

    Args:
        kind: Settings class.
        profile: Profile of the configuration file, None for the default one.
        values: Field -> value of the flag, None where it was not given, `none` for the value None.

    Raises:
        click.UsageError: A required setting is missing.
        InvalidArgument: CONFIG_INVALID, a variable or the configuration file is wrong.
        OSError: The configuration file cannot be read.
    """
    flags = {one.dotted: values[one.name] for one in describe(kind, kind.role)}
    try:
        return config.load_service(
            kind, paths.config_file(), os.environ, profile=profile, flags=flags, joined=joined_profiles()
        )
    except InvalidArgument as error:
        if error.reason == "SETTING_MISSING":
            raise click.UsageError(error.message) from error
        raise


def start(load: Callable[[], S], build: Callable[[S], "Service"]) -> int:
    """Reads the settings, builds the service and serves it.

    Returns:
        The exit code of the process. A refusal is printed as one line.
    """
    process.keep_large_buffers()
    connections = descriptors.connection_share(descriptors.raise_limit())
    process.keep_files_private()
    listen = ""
    try:
        settings = load()
        listen = settings.listen
        process.configure_logging(settings.log_level)
        for message in config.unknown_variables(os.environ):
            log.warning("%s", message)
        _make_state_private()
        ports = securing.ports_of(settings)
        service = build(settings)
        from zrelay_shared.service import lifecycle  # loads grpc, which is not needed to refuse a setting

        options = lifecycle.ServeOptions(
            ports.listen,
            tls=ports.tls,
            security=securing.security_of(settings) if ports.secured else None,
            token_listen=ports.token_listen,
            health_listen=ports.health_listen,
            grace_s=settings.grace_s,
            address_file=settings.address_file,
            max_connections=connections,
            max_calls=settings.max_calls,
        )
        return lifecycle.serve(service, options)
    except ZrelayError as error:
        _print_error(error.message)
        return exits.code_of(error)
    except ModuleNotFoundError as error:
        if (error.name or "zrelay").startswith("zrelay"):
            raise
        _print_error(f"{error.name} is not installed: pip install 'zrelay[all]'")
        return exits.LOCAL_FILE
    except OSError as error:
        _print_error(f"{error.filename or listen}: {error.strerror or error}")
        return exits.LOCAL_FILE


def _print_error(message: str) -> None:
    print(f"error: {texts.printable(message)}", file=sys.stderr)


def _make_state_private() -> None:
    """Takes the rights of other users from the state of an older zrelay."""
    with contextlib.suppress(OSError):  # what needs the folder refuses it
        if tightened := private.tighten(paths.state_dir()):
            log.warning("%s", tightened)


def _complete_profile(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    try:
        joined = joined_profiles()
        names = [*config.load(paths.config_file(), os.environ, joined=joined).profiles, *joined]
    except (ZrelayError, OSError):  # an invalid file must not disturb the shell
        return []
    return [name for name in names if name.startswith(incomplete) and shlex.quote(name) == name]
