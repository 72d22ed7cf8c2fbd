"""The `zrelay` command: the table of its commands, exit codes, and errors as one line."""

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from zrelay_shared import __version__, exits

COMMANDS = {
    "generate": "Generate images from prompts.",
    "jobs": "List, watch, fetch and cancel the jobs of generators.",
    "encode": "Encode a prompt to a file, for a generator without an encoder.",
    "vision": "Encode images, score texts, and blend images into prompts.",
    "calibrate": "Compute statistics of an encoder's embeddings for the vision service.",
    "analyze": "List outlier dimensions and correlations of embeddings.",
    "up": "Start the services on this machine.",
    "down": "Stop the services that `up` started.",
    "demo": "Start the services, generate one image, and stop them.",
    "serve": "Run one service in the foreground.",
    "pair": "Admit another machine to this machine's services.",
    "join": "Join another machine, to use its services.",
    "info": "Show the services, or how an image file was made.",
    "doctor": "Check configuration, connections and models, and suggest fixes.",
    "config": "Show, check or create the configuration.",
    "completion": "Print the completion script of a shell.",
}
"""Name of a command and its line in the help. The command is `command` in the module zrelay_client.cli.NAME."""

_EXIT_CODES = f"""\b
Exit codes:
  {exits.OK:3}  success
  {exits.BUG:3}  a bug in zrelay; the message says how to report it
  {exits.USAGE:3}  wrong options or arguments
  {exits.REFUSED:3}  refused: an invalid value, incompatible parts, a missing feature
  {exits.UNREACHABLE:3}  a service cannot be reached, is loading, or was shut down
  {exits.LOCAL_FILE:3}  a local file or model folder cannot be read or written
  {exits.BUSY:3}  a service is at its limit; try again later
  {exits.TIMEOUT:3}  a time limit was exceeded
  {exits.HUNG_UP:3}  ended by SIGHUP: the terminal was closed
  {exits.INTERRUPTED:3}  interrupted with Ctrl-C
  {exits.TERMINATED:3}  ended by SIGTERM
"""


class Root(click.Group):
    """A group that lists its commands without importing them, and imports a command when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of the commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports a command; returns None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"zrelay_client.cli.{cmd_name}").command
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=Root,
    epilog=_EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="zrelay")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Generate images with Z-Image on several machines: one encodes the prompt, another generates the image.

    \b
    zrelay demo                                      see it work
    zrelay up --detach                               start the services on this machine
    zrelay generate "a red fox" -o fox.png           generate an image
    zrelay generate --encoder mac --generator box .. use two machines
    """


def main(args: Sequence[str] | None = None, command: click.Command = cli) -> int:
    """Runs `zrelay`, or another command in the same way.

    Args:
        args: The arguments; those of the process if None.
        command: The command to run.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if os.name == "nt":
        _write_utf8()
    try:
        code = command.main(arguments, prog_name="zrelay", standalone_mode=False)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        _print_error(*shown.getvalue().splitlines())
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        message = str(error.__cause__ or error)  # click turns KeyboardInterrupt into Abort
        _print_error(f"interrupted: {message}" if message else "interrupted")
        return exits.INTERRUPTED
    except SystemExit as exit:
        if exit.code != 1:  # click exits with 1 where the reader of a pipe has gone (`| head`), which is not an error
            raise
        return exits.OK
    except Exception as error:
        if (terminated := getattr(error, "exit_code", None)) is not None:  # of zrelay_client.cli._running.Terminated
            _print_error(f"terminated: {error}")
            return int(terminated)
        if "--debug" in arguments:
            import traceback

            _print_error(*traceback.format_exc().splitlines())
        _print_error(f"error: {_message(error)}")
        return _exit_code(error)
    return code if isinstance(code, int) else exits.OK


def _write_utf8() -> None:
    """Writes UTF-8 to pipes and files, too, as on other platforms. Code pages of Windows lack most characters."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _message(error: Exception) -> str:
    from zrelay_client.cli._output import file_error_text  # neither is needed by `--help`
    from zrelay_shared.errors import ZrelayError

    if isinstance(error, ZrelayError):
        return error.message
    if isinstance(error, OSError):
        return file_error_text(error)
    return f"a bug in zrelay: {type(error).__name__}: {error}; please report it with the output of `zrelay --debug ...`"


def _exit_code(error: Exception) -> int:
    from zrelay_shared.errors import ZrelayError

    if isinstance(error, ZrelayError):
        return exits.code_of(error)
    return exits.LOCAL_FILE if isinstance(error, OSError) else exits.BUG


def _print_error(*messages: str) -> None:
    from zrelay_client.cli._output import echo

    with contextlib.suppress(OSError):  # the terminal was closed
        for message in messages:
            echo(message, err=True)
