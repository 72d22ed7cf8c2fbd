"""The root of the command line and the table of its commands."""

from importlib import import_module

import click

from zrelay_shared import __version__, exits

_COMMANDS = {
    "generate": "Paint a prompt.",
    "jobs": "Look at jobs that generators keep; watch, fetch, cancel them.",
    "encode": "Encode a prompt to a file, for a generator that never meets the encoder.",
    "vision": "Ask the vision service about images: encode them to a file, score texts.",
    "calibrate": "Keep statistics of an encoder's embeddings, for the vision service.",
    "analyze": "List outlier dimensions of embeddings, and correlations between two sets.",
    "up": "Start the services on this machine.",
    "down": "End what `up` started.",
    "demo": "Paint a picture on this machine, with nothing configured.",
    "serve": "Run one service in the foreground.",
    "info": "Show what services are, or what an image file says of itself.",
    "doctor": "Check every hop, with the fix for what is wrong.",
    "config": "Show, check or begin the configuration.",
    "completion": "Print the completion script of a shell.",
}
"""Name -> one line. The command is `command` of the module zrelay_client.cli.NAME."""

_EXIT_CODES = f"""\b
Exit codes:
  {exits.OK:3}  done
  {exits.BUG:3}  a bug; the message says where to look
  {exits.USAGE:3}  wrong flags or arguments
  {exits.REFUSED:3}  refused: a bad value, parts that do not fit, a missing feature
  {exits.UNREACHABLE:3}  a service cannot be reached, still loads, or went away
  {exits.LOCAL_FILE:3}  a local file or model folder cannot be read or written
  {exits.BUSY:3}  a service is at its limit; try again later
  {exits.TIMEOUT:3}  the time was up
  {exits.INTERRUPTED:3}  Ctrl-C
"""


class Root(click.Group):
    """A group that knows its commands' names and lines, and imports a command when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = import_module(f"zrelay_client.cli.{cmd_name}").command
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    cls=Root,
    epilog=_EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="zrelay")
@click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
def cli(debug: bool) -> None:
    """Z-Image across machines: one encodes the prompt, another paints, this one asks them to.

    \b
    zrelay demo                                      see it work
    zrelay up --detach                               services on this machine
    zrelay generate "a red fox" -o fox.png           paint
    zrelay generate --encoder mac --generator box .. paint with two machines
    """
