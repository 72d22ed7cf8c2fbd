"""Options that commands share: headings of the help, options made of settings, endpoints, and the client.

Every `--help` imports this module, so it imports no configuration, no client and no asyncio.
"""

import re
import shlex
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from zrelay_shared.connection import connection_settings
from zrelay_shared.limits import DEFAULT_PORTS
from zrelay_shared.service.options import SettingOption
from zrelay_shared.service.settings import REQUEST_GROUPS, Setting

if TYPE_CHECKING:
    from zrelay_client.client import AsyncClient
    from zrelay_client.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
E = TypeVar("E", bound=Exception)
T = TypeVar("T")
Flags = dict[str, Any]
"""Dotted key of a setting -> the value of its flag, None where the flag is not given."""
PATH = click.Path(readable=False)
"""A file or folder, so that shells complete it; the command checks whether it exists."""
CONNECTION = "Connection"
_OPTION_IN_TEXT = re.compile(r"`([a-z_]+)`")
_SEVERAL = {
    "encoder": "; repeat it for encoders that stand in for the first",
    "generator": "; repeat it for several generators that share the work",
}


class Integer(click.IntRange):
    """A whole number in ASCII digits; `int` reads those of every script, and underscores."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Converts the text of an option. Fails with exit code 2."""
        return super().convert(_ascii(self, value, param, ctx), param, ctx)


class Number(click.FloatRange):
    """A number in ASCII digits; `float` reads those of every script, and underscores."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Converts the text of an option. Fails with exit code 2."""
        return super().convert(_ascii(self, value, param, ctx), param, ctx)


def _ascii(
    kind: click.IntRange | click.FloatRange, value: Any, param: click.Parameter | None, ctx: click.Context | None
) -> Any:
    if isinstance(value, str) and not (value.isascii() and "_" not in value):  # Python's numbers may have underscores
        kind.fail(f"{value!r} is not a valid {kind.name.removesuffix(' range')}.", param, ctx)
    return value


class HeadedOption(click.Option):
    """An option that the help lists under a heading."""

    def __init__(self, *args: Any, heading: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.heading = heading

    def get_help_extra(self, ctx: click.Context) -> Any:
        """Leaves the range of a number out of the help; messages name it."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        return extra


class OptionsCommand(click.Command):
    """A command that lists its options under headings, and gets the flags of settings as one argument.

    With `settings` or `roles` the callback is called with `flags: Flags` and `profile: str | None`.
    """

    def __init__(
        self,
        *args: Any,
        settings: Sequence[Setting] = (),
        roles: Sequence[str] = (),
        params: list[click.Parameter] | None = None,
        **attributes: Any,
    ) -> None:
        """Makes the command.

        Args:
            *args: As of click.Command.
            settings: Settings that become options.
            roles: Services whose endpoints become options, with those of the connection.
            params: Other arguments and options.
            **attributes: As of click.Command.
        """
        found = list(params or ())
        found += [SettingOption(one, one.dotted.replace(".", "_")) for one in settings]
        found += [_endpoint_option(role) for role in roles]
        if roles:
            found += [SettingOption(one, one.dotted.replace(".", "_")) for one in connection_settings()]
        if settings or roles:
            found.append(profile_option("Profile of the configuration file.", heading=CONNECTION))
        self._has_flags = bool(settings or roles)
        attributes["params"] = found
        super().__init__(*args, **attributes)

    def invoke(self, ctx: click.Context) -> Any:
        """Collects the flags of settings, and calls the callback."""
        if self._has_flags:
            flags: Flags = {}
            for param in self.params:
                name = param.name or ""
                if isinstance(param, SettingOption):
                    flags[param.setting.dotted] = ctx.params.pop(name)
                elif name in DEFAULT_PORTS:
                    flags[f"{name}.endpoint"] = ctx.params.pop(name)
            ctx.params["flags"] = flags
        try:
            return super().invoke(ctx)
        except Exception as error:
            raise with_flag(error) from error.__cause__

    def flag_of(self, name: str, path: str, ctx: click.Context) -> str | None:
        """Returns how users write an option of the library on this command line, None if they cannot.

        Args:
            name: Name of the option.
            path: The field of the contract that it became, "" if unknown. It tells options of one name apart.
            ctx: The context of the call.
        """
        if name == "prompt" and ctx.params.get("prompt_embeds") is not None:
            name = "prompt_embeds"
        if name in ("width", "height") and ctx.params.get("size") is not None:
            return "--size"
        settings = [param for param in self.params if isinstance(param, SettingOption) and param.setting.name == name]
        if settings:
            of_vision = [param for param in settings if param.setting.section in ("encode_images", "condition")]
            wanted = of_vision if path.startswith("states_options.") and of_vision else settings
            return wanted[0].setting.flags[0]
        for param in self.params:
            if param.name == name:
                return param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
        return None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the options under their headings."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        few = {_heading(option) for option in options} <= {"", "Output", CONNECTION}
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in options:
            heading = _heading(option)
            if few and heading != CONNECTION:
                heading = "Options"
            if (record := option.get_help_record(ctx)) is not None:
                groups.setdefault(heading or "Other", []).append(record)
        for heading in ("Options", *REQUEST_GROUPS, "Other"):
            if heading in groups:
                with formatter.section(heading):
                    formatter.write_dl(groups[heading])


def with_flag(error: E) -> E:
    """Returns an error whose message names flags of the running command in place of the library's options.

    These are the option of the field, at the beginning of the message, and options in backticks anywhere.
    """
    from zrelay_shared.errors import ZrelayError

    ctx = click.get_current_context(silent=True)
    if not isinstance(error, ZrelayError) or ctx is None or not isinstance(ctx.command, OptionsCommand):
        return error
    command, path, message = ctx.command, error.metadata.get("contract_field", ""), error.message
    name, _, number = error.field.partition("[")
    flag = command.flag_of(name, path, ctx) if name else None
    which = f" (number {int(number.rstrip(']')) + 1})" if number.rstrip("]").isdigit() else ""
    if flag == "--size" and error.reason != "SIZE_INVALID":  # one of its two sides
        which = f" ({name})"
    if flag is not None and message.startswith(f"{error.field}:"):
        message = f"{flag}{which}{message.removeprefix(error.field)}"
    message = _OPTION_IN_TEXT.sub(lambda found: command.flag_of(found[1], path, ctx) or found[0], message)
    if message == error.message:
        return error
    return type(error)(
        message,
        reason=error.reason,
        field=error.field,
        metadata=error.metadata,
        retry_after_s=error.retry_after_s,
    )


def option(*names: str, heading: str = "", **attributes: Any) -> Callable[[F], F]:
    """Declares an option; `heading` is one of `REQUEST_GROUPS`, or "" for the general ones."""
    return click.option(*names, cls=HeadedOption, heading=heading, **attributes)


json_option = option("--json", "as_json", is_flag=True, help="Print one JSON object to standard output.")
quiet_option = option("-q", "--quiet", is_flag=True, help="Print only results and errors.")
force_option = option("--force", is_flag=True, heading="Output", help="Replace files that exist.")


def profile_option(help: str, *, heading: str = "") -> click.Option:
    """Makes `--profile`, whose names shells complete."""
    return HeadedOption(["--profile"], metavar="NAME", help=help, heading=heading, shell_complete=complete_profile)


def complete_profile(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Returns the names of profiles that start with a text, without those that a shell would interpret."""
    from zrelay_client.settings import Settings
    from zrelay_shared.errors import ZrelayError

    try:
        names = Settings.load().profiles
    except (ZrelayError, OSError):  # an invalid file must not disturb the shell
        return []
    return [name for name in names if name.startswith(incomplete) and shlex.quote(name) == name]


def values_of(section: object, *, without: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the values of a section of the configuration that are set, as keywords of the client library."""
    left_out = set(without)
    names = [item.name for item in fields(section) if item.name not in left_out]  # type: ignore[arg-type]
    values = {name: getattr(section, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def read_prompt(prompt: str) -> str:
    """Returns the prompt; for `-` the text on standard input, as `texts.decode` reads it, without its last newlines."""
    if prompt != "-":
        return prompt
    from zrelay_shared import texts

    try:
        return texts.decode(sys.stdin.buffer.read(), "the prompt on standard input").rstrip("\n")
    except texts.NotText as error:
        raise click.UsageError(f"{error}") from error


def load_settings(profile: str | None, flags: Flags, *required: str) -> "Settings":
    """Reads the configuration and finds the services.

    Args:
        profile: Profile of the configuration file.
        flags: Values of flags.
        *required: Roles that must have an endpoint.

    Raises:
        InvalidArgument: CONFIG_INVALID, ENDPOINT_MISSING.
        OSError: The configuration file cannot be read.
    """
    from zrelay_client.settings import Settings

    settings = Settings.load(profile, flags)
    settings.require(*required)
    return settings


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on an event loop of its own and returns its result."""
    import asyncio

    return asyncio.run(work)


def client_of(settings: "Settings", *roles: str) -> "AsyncClient":
    """Returns a client of the services of some roles; of all roles where none is named. Raises InvalidArgument."""
    from zrelay_client.client import AsyncClient

    return AsyncClient.from_settings(settings, roles=roles or tuple(DEFAULT_PORTS))


def _endpoint_option(role: str) -> click.Option:
    several = role in _SEVERAL
    help = f"Address of the {role} service: HOST, HOST:PORT or a joined BOX{_SEVERAL.get(role, '')}."
    return HeadedOption(
        [f"--{role}"], metavar="HOST:PORT", help=help, multiple=several, callback=_joined, heading=CONNECTION
    )


def _joined(ctx: click.Context, param: click.Parameter, value: Any) -> str | None:
    return (",".join(value) or None) if isinstance(value, tuple) else value


def _heading(param: click.Parameter) -> str:
    if isinstance(param, SettingOption):
        return param.setting.group
    return param.heading if isinstance(param, HeadedOption) else ""
