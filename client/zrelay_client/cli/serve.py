"""`zrelay serve`: turns this process into that of one service."""

import os
import signal
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from zrelay_shared.service.command import SettingsCommand

_ROLES = {
    "encoder": "Serve prompt encoding: prompts to prompt_embeds.",
    "vision": "Serve reference images: embeddings, grids, scores, conditioned prompts.",
    "generator": "Serve generation: prompt_embeds to images.",
}


class ServeGroup(click.Group):
    """A group with a command for each role, which is made of the role's settings when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the roles."""
        return list(_ROLES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns the command of a role, None for another name."""
        return _role_command(cmd_name) if cmd_name in _ROLES else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the roles without making their commands."""
        with formatter.section("Roles"):
            formatter.write_dl(list(_ROLES.items()))


@click.group("serve", cls=ServeGroup, subcommand_metavar="ROLE [OPTIONS]")
def command() -> None:
    """Run one service in the foreground. `zrelay serve ROLE --help` lists its options.

    Settings come from options, ZRELAY_<ROLE>_* variables, or the table [profile.NAME.ROLE] of the configuration file.
    """


def _wait_for(command: list[str], environ: Mapping[str, str]) -> int:
    """Runs a process and returns its exit code. Ctrl-C reaches the process itself and is ignored here."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return subprocess.run(command, env=environ, check=False).returncode


def _role_command(role: str) -> "SettingsCommand":
    from zrelay_shared.service import command as kit
    from zrelay_shared.service.roles import SERVICE_CONFIGS

    kind = SERVICE_CONFIGS[role]

    class RoleCommand(kit.SettingsCommand):
        """Keeps the arguments for the service's own process, which reads the same options."""

        def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
            ctx.obj = [arg for arg in args if arg != "--"]  # `serve ROLE -- OPTIONS` is the spelling of older versions
            return super().parse_args(ctx, list(ctx.obj))

    @click.pass_context
    def run(ctx: click.Context, /, profile: str | None, **values: Any) -> None:
        from zrelay_client.stack.extras import module_of
        from zrelay_client.stack.interpreter import child_environment, module_command

        module = module_of(role)
        kit.load_settings(kind, profile, values)
        command, environ = module_command(module, *ctx.obj), child_environment()
        if os.name == "nt":  # a process of Windows cannot become another
            ctx.exit(_wait_for(command, environ))
        os.execve(command[0], command, environ)

    return RoleCommand(role, kind=kind, callback=run, help=_ROLES[role])
