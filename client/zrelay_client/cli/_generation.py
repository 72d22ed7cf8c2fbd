"""What `zrelay generate` does: checks that its options go together, makes the job or jobs, and runs them."""

from pathlib import Path

import click

from zrelay_client.cli import _running
from zrelay_client.cli._image_jobs import GenerateArguments, image_job, seeds_of_jobs, size_flags, uses_vision
from zrelay_client.cli._options import Flags, load_settings, read_prompt
from zrelay_client.cli._output import Console
from zrelay_client.cli._prompts_file import run_prompts
from zrelay_shared.requests import request_setting


def generate(arguments: GenerateArguments, flags: Flags, profile: str | None) -> int:
    """Runs the command.

    Args:
        arguments: Arguments and options that are not settings.
        flags: Flags of settings.
        profile: Profile of the configuration file.

    Returns:
        The exit code.

    Raises:
        click.UsageError: Options contradict each other.
        ZrelayError, OSError, KeyboardInterrupt: The work failed or was interrupted.
    """
    if arguments.size is not None:
        if flags["generate.width"] is not None or flags["generate.height"] is not None:
            raise click.UsageError("--size sets width and height: leave out --width and --height")
        flags |= size_flags(arguments.size)
    flags["encode.deterministic"] = flags["generate.deterministic"]
    _check_flags(arguments, flags)
    if arguments.as_json and arguments.output == "-":
        raise click.UsageError("--json and --output - both use standard output: choose one")
    if arguments.prompts is not None:
        return run_prompts(arguments, flags, profile)
    source = _source(arguments)
    needed = ["encoder"] if isinstance(source, str) else []
    needed += ["vision"] if uses_vision(arguments) else []
    settings = load_settings(profile, flags, *needed, "generator")
    seeds = seeds_of_jobs(arguments, settings.config)
    job = image_job(arguments, settings.config, source, jobs=len(seeds or [0]))
    with Console(quiet=arguments.quiet) as console:
        if arguments.detach:
            return _running.run_detached(settings, job, seeds, console, as_json=arguments.as_json)
        if seeds is None:
            return _running.run_one(settings, job, console, as_json=arguments.as_json)
        return _running.run_batch(settings, job, seeds, arguments.in_flight, console, as_json=arguments.as_json)


def _check_flags(arguments: GenerateArguments, flags: Flags) -> None:
    """Refuses options that go with another option which is missing."""
    given = [dotted for dotted, value in flags.items() if value is not None and dotted != "encode.deterministic"]

    def require(other: bool, what: str, remedy: str, *prefixes: str) -> None:
        for dotted in given:
            if not other and dotted.startswith(prefixes):
                raise click.UsageError(f"{request_setting(dotted).flags[0]} is for {what}: {remedy}")

    if arguments.reference is not None and arguments.omni:
        raise click.UsageError(
            "--reference blends an image into the prompt, --omni generates from images beside it: choose one"
        )
    lines = arguments.prompts is not None  # whose objects may hold the other option
    reference = arguments.reference is not None
    require(reference or lines, "reference images", "add --reference IMAGE", "condition.")
    require(arguments.image is not None or lines, "an image to start from", "add --image FILE", "generate.strength")
    require(arguments.preview is not None, "previews", "add --preview PATH", "generate.preview_")
    if arguments.detach:
        for flag, value, verb in (
            ("--output", arguments.output, "fetch ID -o PATH"),
            ("--force", arguments.force or None, "fetch ID --force"),
            ("--preview", arguments.preview, "watch ID --preview PATH"),
        ):
            if value is not None:
                raise click.UsageError(
                    f"{flag} has no effect with --detach, which writes no files: leave it out, and run "
                    f"`zrelay jobs {verb}` later"
                )
    if arguments.in_flight is not None and not (lines or arguments.count is not None or arguments.seeds is not None):
        raise click.UsageError("--in-flight is for many jobs: add --count, --seeds or --prompts")
    if arguments.prompt_embeds is not None:
        prompt = "a prompt, which --prompt-embeds replaces"
        require(False, prompt, "pass it to `zrelay encode`", "encode.")


def _source(arguments: GenerateArguments) -> str | Path:
    """Returns the text of the prompt, or the path of --prompt-embeds. Raises click.UsageError if neither is given."""
    if arguments.prompt_embeds is not None:
        if arguments.prompt is not None or arguments.negative_prompt is not None:
            raise click.UsageError("--prompt-embeds holds prompt and negative prompt: leave them out")
        return Path(arguments.prompt_embeds)
    if arguments.prompt is None:
        raise click.UsageError(
            "expected a prompt, got none: add PROMPT, `-` for standard input, --prompt-embeds FILE or --prompts FILE"
        )
    return read_prompt(arguments.prompt)
