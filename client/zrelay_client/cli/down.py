"""`zrelay down`: the end of what `zrelay up` started."""

import click

from zrelay_shared import paths


@click.command("down")
def command() -> None:
    """End the services that `zrelay up` started on this machine: exactly those processes, and no others.

    Running work gets the grace period that `up` was given.
    """
    from zrelay_client.stack.stack import down

    ended = down(paths.state_dir())
    if not ended:
        click.echo("nothing runs", err=True)
    for service in ended:
        click.echo(f"{service.role} ended", err=True)
