"""`zrelay completion`: the completion scripts of shells."""

import click

_SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
def command(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash   eval "$(zrelay completion bash)"            in ~/.bashrc
    zsh    eval "$(zrelay completion zsh)"             in ~/.zshrc
    fish   zrelay completion fish > ~/.config/fish/completions/zrelay.fish
    """
    from click.shell_completion import get_completion_class

    from zrelay_client.cli._main import cli
    from zrelay_client.cli._output import echo

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"expected {', '.join(_SHELLS)}, got {shell}")
    echo(kind(cli, {}, "zrelay", "_ZRELAY_COMPLETE").source())
