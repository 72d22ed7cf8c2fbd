"""Settings as options of a command line."""

from typing import TYPE_CHECKING, Any

import click

from zrelay_shared.service.settings import NONE, Setting, Value

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    _ParamType = click.ParamType[Value]
else:
    _ParamType = click.ParamType  # not generic in older versions of click


class SettingOption(click.Option):
    """The option of one setting. Its value is None where the option is not given."""

    def __init__(self, setting: Setting, name: str | None = None) -> None:
        """Makes the option; a boolean setting also gets a `--no-` form.

        Args:
            setting: The setting.
            name: Name of the callback's parameter, by default the setting's name.
        """
        self.setting = setting
        default = f"default: {setting.default_text}" if setting.default_text else "required" * setting.required
        words = f" One of {', '.join(setting.choices)}." if setting.choices and "|" not in setting.metavar else ""
        help = setting.help + words + (f"  [{default}]" if default else "")
        name = name or setting.name
        if setting.kind is bool:
            flag = setting.flags[0]
            super().__init__([f"{flag}/--no-{flag.removeprefix('--')}", name], default=None, help=help)
        else:
            kind, metavar = SettingType(setting), setting.metavar
            super().__init__(
                [*setting.flags, name], type=kind, metavar=metavar, default=None, help=help, multiple=setting.pairs
            )

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Converts the value; of an option that may be repeated None if it is not given, `none` for the value None."""
        converted = super().process_value(ctx, value)
        if not self.multiple:
            return converted
        return NONE if converted == (NONE,) else converted or None


class SettingType(_ParamType):
    """Reads the value of a setting, with the same rules and messages as variables and the configuration file."""

    def __init__(self, setting: Setting) -> None:
        self.name = setting.key
        self._setting = setting

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Value:
        """Converts the text of an option; the word `none` stays, because None means that the option is not given.

        Fails with exit code 2.
        """
        if self._setting.is_none(value):
            return NONE
        try:
            return self._setting.parse_item(value) if self._setting.pairs else self._setting.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        """Completes choices, and leaves paths to the shell."""
        from click.shell_completion import CompletionItem

        if self._setting.choices:
            words = (*self._setting.choices, *([NONE] if self._setting.optional else []))
            return [CompletionItem(word) for word in words if word.startswith(incomplete)]
        is_file = self._setting.is_path or self._setting.metavar == "FILE"
        return [CompletionItem(incomplete, type="file")] if is_file else []
