"""`zrelay down`: stops the services that `zrelay up` started."""

import click

from zrelay_client.cli._options import OptionsCommand, json_option
from zrelay_client.cli._output import echo, print_json
from zrelay_shared import paths


@click.command("down", cls=OptionsCommand)
@json_option
def command(as_json: bool) -> None:
    """Stop the services that `zrelay up` started on this machine, and no other processes.

    Running jobs get the time that --grace-s of `zrelay up` gives them.
    """
    from zrelay_client.stack.stack import down

    ended = down(paths.state_dir())
    if as_json:
        print_json({"stopped": [service.role for service in ended]})
        return
    if not ended:
        echo("nothing runs", err=True)
    for service in ended:
        echo(f"{service.role} ended", err=True)
