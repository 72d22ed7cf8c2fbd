"""`zrelay generate --prompts FILE`: a job for each line of a JSON Lines file; the same command again continues it.

A line is an object with `prompt` (or `prompt_embeds`) and any option of `zrelay generate` by the name of its flag, with
underscores. All lines are checked before any work begins.

Each result and failure is appended to `NAME.results.jsonl` in the output folder. A line has an id: the SHA-256 of its
prompt, options and input files, and of its number among equal lines. A line is done if the results file holds a success
of that id and its images still exist; other lines run, again if they failed. So lines may be added, removed and moved
between two runs, and a line whose options change runs again. A line without a seed has one that follows from its id.
The id is part of the request id, so that a run after a crash gets the results of jobs that were done meanwhile.
"""

import asyncio
import contextlib
import difflib
import hashlib
import json
import os
import re
import sys
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import click

from zrelay_client._jobs.batch import IN_FLIGHT
from zrelay_client.cli import _running
from zrelay_client.cli._files import Previews, Targets, check_new_folder, chosen_format, file_values, is_folder
from zrelay_client.cli._image_jobs import (
    GenerateArguments,
    ImageJob,
    image_job,
    size_flags,
    uses_vision,
)
from zrelay_client.cli._options import Flags, client_of, load_settings
from zrelay_client.cli._output import Console, print_json
from zrelay_client.cli._running import BatchProgress
from zrelay_client.client import AsyncClient
from zrelay_client.embeds import Embeds
from zrelay_client.events import Event, Notice
from zrelay_client.results import Outcome, Result
from zrelay_client.settings import Settings
from zrelay_shared import exits, strict_json, texts
from zrelay_shared.config import Config
from zrelay_shared.errors import FailedPrecondition, IdempotencyConflict, InvalidArgument, Unavailable, ZrelayError
from zrelay_shared.requests import request_settings
from zrelay_shared.service.settings import Setting

_ERRORS_SHOWN = 10
_TEXTS = ("prompt", "prompt_embeds", "negative_prompt", "size", "image", "reference", "output")
_SECTIONS = ("generate", "encode", "condition")
"""Tables of the configuration whose keys a line may hold; `deterministic` counts for the encoder, too."""
_NOT_IN_ID = ("timeout_s", "priority", "preview_every", "preview_max_side")
"""Settings that change no image."""


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One line of the file.

    Attributes:
        number: Its number in the file, from 1.
        id: What identifies it in the results file.
        arguments: The arguments of the command with those of the line.
        timeout_s: Timeout of the job in seconds; None for the default.
        job: The job, whose files are in the output folder; its seed is set.
    """

    number: int
    id: str
    arguments: GenerateArguments
    timeout_s: float | None
    job: ImageJob


class ResultsFile:
    """The results of earlier runs and of this one, a JSON object on each line.

    Args:
        path: The file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def done(self) -> dict[str, dict[str, Any]]:
        """Returns id -> record of the lines that succeeded and whose images still exist. Raises OSError."""
        if not self._path.exists():
            return {}
        found = {}
        for line in self._path.read_bytes().split(b"\n"):
            try:
                record = strict_json.parse(line)
            except strict_json.JsonError:  # a record that was cut off by a crash
                continue
            if isinstance(record, dict) and record.get("state") == "succeeded" and self._exist(record.get("files")):
                found[str(record.get("id"))] = record
        return found

    def append(self, record: Mapping[str, Any]) -> None:
        """Appends a record and writes it to the disk. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab+") as file:
            line = texts.printable_json(json.dumps(record, ensure_ascii=False)).encode() + b"\n"
            if file.tell() and not self._ends_with_newline(file):
                line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _exist(self, files: object) -> bool:
        if not isinstance(files, list):
            return False
        return all((self._path.parent / str(file.get("path"))).is_file() for file in files if isinstance(file, dict))

    @staticmethod
    def _ends_with_newline(file: Any) -> bool:
        file.seek(-1, os.SEEK_END)
        return bool(file.read(1) == b"\n")


def run_prompts(arguments: GenerateArguments, flags: Flags, profile: str | None) -> int:
    """Runs the lines that are not done.

    Args:
        arguments: Arguments and options of the command, which are defaults of the lines.
        flags: Flags of settings.
        profile: Profile of the configuration file.

    Returns:
        The exit code: that of the first failure.

    Raises:
        click.UsageError: Options contradict `--prompts`.
        InvalidArgument: PROMPTS_INVALID, lines are invalid; the message names them.
        ZrelayError: A service cannot be reached.
        OSError: A file cannot be read or written.
        KeyboardInterrupt: Ctrl-C; the message says how to continue.
    """
    _check_arguments(arguments)
    name, data = _read(arguments.prompts or "-")
    settings = load_settings(profile, flags)
    folder = Path(arguments.output or ".")
    lines = read_lines(name, data, replace(arguments, output=None), settings.config, folder)
    results = ResultsFile(folder / f"{PurePath(name).stem}.results.jsonl")
    check_new_folder(folder)
    if arguments.preview is not None:
        Previews(Path(arguments.preview)).check()
    done = results.done()
    waiting = [line for line in lines if line.id not in done]
    _check_files(name, lines, {line.id for line in waiting})
    with Console(quiet=arguments.quiet) as console:
        if not waiting:
            console.message(f"all lines ({len(lines)}) are done already")
            return exits.OK
        if len(waiting) < len(lines):
            console.message(f"{len(lines) - len(waiting)} of {len(lines)} lines are done already")
        needed = ["encoder"] if any(isinstance(line.job.source, str) for line in waiting) else []
        needed += ["vision"] if any(uses_vision(line.arguments) for line in waiting) else []
        settings = load_settings(profile, flags, *needed, "generator")
        kept = {folder / file["path"] for line in lines if line.id in done for file in done[line.id]["files"]}
        run = _PromptsRun(settings, waiting, results, folder, console, kept=kept, as_json=arguments.as_json)
        _running.run_interruptible(run.work(arguments.in_flight), console)
        console.message(run.progress.summary())
        return run.progress.exit_code


def read_lines(
    name: str, data: bytes, arguments: GenerateArguments, settings: Config, folder: Path
) -> list[PromptLine]:
    """Reads and checks all lines, and the files that they name.

    Args:
        name: Name of the file, for messages.
        data: Its content.
        arguments, settings: Defaults of the lines.
        folder: The output folder.

    Raises:
        InvalidArgument: PROMPTS_INVALID; the message names the lines.
    """
    lines: list[PromptLine] = []
    errors: list[str] = []
    equal: Counter[str] = Counter()
    files = _InputFiles()
    try:
        text = texts.decode(data, name)
    except texts.NotText as error:
        raise InvalidArgument(f"{error}", field="prompts", reason="PROMPTS_INVALID") from error
    for number, raw in enumerate(text.split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            of_line, config = _read_line(raw, arguments, settings)
            content = _content_id(of_line, config, files)
            equal[content] += 1
            lines.append(_prompt_line(number, f"{content}-{equal[content]}", of_line, config, folder))
        except (ValueError, click.UsageError, ZrelayError, OSError) as error:
            errors.append(f"line {number}: {_message(error)}")
    if not lines and not errors:
        errors.append('expected lines such as {"prompt": "a red fox"}, got none')
    if errors:
        raise _invalid(name, errors)
    return lines


class _PromptsRun:
    """Runs lines, several at the same time, and records what becomes of them."""

    def __init__(
        self,
        settings: Settings,
        lines: Sequence[PromptLine],
        results: ResultsFile,
        folder: Path,
        console: Console,
        *,
        kept: set[Path],
        as_json: bool,
    ) -> None:
        """Prepares the run; `kept` are the images of lines that are done, which `--force` does not replace."""
        self._settings, self._lines, self._results = settings, lines, results
        self._folder, self._console, self._taken, self._as_json = folder, console, kept, as_json
        self._notices: dict[str, list[str]] = {}
        self.progress = BatchProgress(len(lines), console, unit="lines")

    async def work(self, in_flight: int | None) -> None:
        """Runs all lines. Raises ZrelayError where a service cannot be reached, OSError, Interrupted."""
        self._console.status("connecting")
        at_once = in_flight or IN_FLIGHT * len(self._settings.endpoints("generator"))
        async with client_of(self._settings) as client:
            stopped = "jobs that were not done are cancelled; run the same command again to continue"
            leave_running = _running.leave_running(client, self._settings.config)

            async def leave() -> str:
                await leave_running()
                return "jobs that were not done are left running; run the same command again for their images"

            await _running.interruptible(self._all(client, at_once), self._console, leave=leave, stopped=stopped)

    async def _all(self, client: AsyncClient, at_once: int) -> None:
        lines = iter(self._lines)

        async def worker() -> None:
            for line in lines:
                await self._one(client, line)

        workers = [asyncio.create_task(worker()) for _ in range(min(at_once, len(self._lines)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for task in workers:
                if not task.cancelling():  # a second cancellation would interrupt the first, which cancels the job
                    task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _one(self, client: AsyncClient, line: PromptLine) -> None:
        job = line.job
        try:
            result = await self._result(client, line)
        except Unavailable:
            raise  # of every other line, too: the next run continues
        except ZrelayError as error:
            self._fail(line, error)
            return
        try:
            self._write(line, replace(job.targets, taken=self._taken), result)
        except FileExistsError as error:
            message = f"{error.filename}: this file holds something else: pass --force to replace it, or change output"
            self._fail(line, FailedPrecondition(message, reason="OUTPUT_EXISTS"))
            return
        self.progress.succeeded(result)

    def _fail(self, line: PromptLine, error: ZrelayError) -> None:
        self._record(line, {"state": "failed", "reason": error.reason, "message": error.message, "files": []})
        self.progress.failed(f"line {line.number}", error)

    async def _result(self, client: AsyncClient, line: PromptLine) -> Result:
        """Runs one job. Raises ZrelayError."""
        job = line.job

        def on_event(index: int, event: Event) -> None:
            self.progress.event(event, job.previews, line.number - 1)
            if isinstance(event, Notice) and event.message not in self._notices.setdefault(line.id, []):
                self._notices[line.id].append(event.message)

        prompt, options = await asyncio.to_thread(job.prompt), await asyncio.to_thread(job.read_options)
        # Embeddings may differ by rounding from those of an earlier run: that is other content for a request id.
        where = hashlib.sha256(str(self._folder.resolve()).encode()).hexdigest()[:8]
        for batch_id in (f"{line.id[:32]}-{where}", uuid.uuid4().hex):
            outcomes = client.generate_many(
                [prompt],
                options,
                negative_prompt=job.negative_prompt,
                encoding=job.encoding,
                batch_id=batch_id,
                in_flight=1,
                on_event=on_event,
                timeout_s=line.timeout_s,
            )
            async with contextlib.aclosing(outcomes):
                outcome: Outcome = await anext(outcomes)
            if outcome.result is not None:
                return outcome.result
            if not isinstance(outcome.error, IdempotencyConflict):
                break
        assert outcome.error is not None
        raise outcome.error

    def _write(self, line: PromptLine, targets: Targets, result: Result) -> None:
        files = []
        for index, image in enumerate(result.images):
            path = targets.write_one(index, image, again=True)
            files.append(file_values(image, path))
            if not self._as_json:
                self._console.result(str(path))
        values = {"state": "succeeded", **_running.result_values(result), "notices": self._notices.get(line.id, [])}
        self._record(line, {**values, "files": files})

    def _record(self, line: PromptLine, values: Mapping[str, Any]) -> None:
        record = {"line": line.number, "id": line.id, "prompt": line.arguments.prompt, **values}
        files = [{**file, "path": os.path.relpath(file["path"], self._folder)} for file in values["files"]]
        self._results.append({**record, "files": files})
        if self._as_json:
            self._console.clear()
            print_json(record)


def _check_arguments(arguments: GenerateArguments) -> None:
    given = {
        "PROMPT": arguments.prompt,
        "--prompt-embeds": arguments.prompt_embeds,
        "--count": arguments.count,
        "--seeds": arguments.seeds,
        "--detach": arguments.detach or None,
    }
    for name, value in given.items():
        if value is not None:
            raise click.UsageError(f"--prompts and {name}: choose one; a line may hold any prompt and seed")
    output = arguments.output
    if output is not None and (output == "-" or not is_folder(output)):
        raise click.UsageError(f"--output {output}: expected a folder with --prompts, got a file: end its name with /")


def _read(source: str) -> tuple[str, bytes]:
    """Returns the name and the content of the file, or of standard input for `-`. Raises OSError."""
    if source == "-":
        return "stdin", sys.stdin.buffer.read()
    path = Path(source)
    return path.name, path.read_bytes()


def _read_line(raw: str, arguments: GenerateArguments, settings: Config) -> tuple[GenerateArguments, Config]:
    """Returns the arguments and the configuration of one line.

    Raises:
        ValueError, click.UsageError, ZrelayError, OSError: The line is invalid.
    """
    try:
        values = strict_json.parse(raw)
    except strict_json.JsonError as error:
        raise ValueError(f"expected a JSON object: the line {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f'expected an object such as {{"prompt": "a red fox"}}, got {raw.strip()[:40]}')
    inputs: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for key, value in values.items():
        if key == "omni":
            inputs[key] = tuple(_texts(key, value))
        elif key in _TEXTS:
            inputs[key] = _text(key, value)
        else:
            one = _setting(key)
            if one.name in sections[one.section]:
                raise ValueError(f"{key}: expected once, got it by two names: leave out one")
            try:
                sections[one.section][one.name] = None if value is None else one.from_toml(value)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
    if (size := inputs.get("size")) is not None:
        if sections["generate"].keys() & {"width", "height"}:
            raise ValueError("size sets width and height: leave out width and height")
        width, height = size_flags(size).values()
        sections["generate"] |= {"width": width, "height": height}
    found = replace(_defaults(arguments, inputs), **inputs)
    _check_inputs(found, sections)
    if "deterministic" in sections["generate"]:
        sections["encode"]["deterministic"] = sections["generate"]["deterministic"]
    origins = {dotted: origin for dotted, origin in settings.origins.items() if dotted != "generate.quality"}
    if sections["generate"].get("quality") is not None:  # that of the command line is a default of all lines
        origins["generate.quality"] = "flag"
    of_line = replace(
        settings,
        origins=origins,
        generate=replace(settings.generate, **sections["generate"]),
        encode=replace(settings.encode, **sections["encode"]),
        condition=replace(settings.condition, **sections["condition"]),
    )
    return found, of_line


def _defaults(arguments: GenerateArguments, inputs: Mapping[str, Any]) -> GenerateArguments:
    """Returns the defaults of a line without those that its inputs replace."""
    if inputs.get("omni"):
        arguments = replace(arguments, reference=None)
    if inputs.get("reference") is not None:
        arguments = replace(arguments, omni=())
    if inputs.get("prompt_embeds") is not None:
        arguments = replace(arguments, negative_prompt=None)
    return arguments


def _check_inputs(arguments: GenerateArguments, sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks what goes together. Raises ValueError, click.UsageError."""
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise ValueError("prompt: expected a description of the image, got an empty prompt")
    if (arguments.prompt is None) == (arguments.prompt_embeds is None):
        got = "neither" if arguments.prompt is None else "both"
        raise ValueError(f"expected prompt or prompt_embeds, got {got}")
    if arguments.prompt_embeds is not None and (arguments.negative_prompt is not None or sections["encode"]):
        raise ValueError(
            "prompt_embeds holds prompt and negative prompt, which are encoded already: leave out the rest"
        )
    if arguments.reference is not None and arguments.omni:
        raise ValueError("reference blends an image into the prompt, omni generates from images beside it: choose one")
    if arguments.image is None and "strength" in sections["generate"]:
        raise ValueError("strength is for an image to start from: add image")
    if arguments.reference is None and sections["condition"]:
        raise ValueError(f"{next(iter(sections['condition']))} is for reference images: add reference")
    if (output := arguments.output) is not None:
        chosen_format(output, None, None)
        parts = PurePath(output).parts
        if PurePath(output).is_absolute() or ".." in parts or not parts or is_folder(output):
            raise ValueError(f"output: expected the name of a file within the output folder, got {output!r}")


class _InputFiles:
    """The digests of input files, each of which is read and checked once although several lines name it."""

    def __init__(self) -> None:
        self._digests: dict[str, str] = {}

    def digest(self, path: str | None) -> str | None:
        """Returns the SHA-256 of a file, None for none. Raises OSError."""
        if path is None:
            return None
        if path not in self._digests:
            self._digests[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return self._digests[path]

    def embeds_digest(self, path: str | None) -> str | None:
        """Checks a file of embeddings and returns its SHA-256; None if `path` is None. Raises as `Embeds.load`."""
        if path is not None and path not in self._digests:
            Embeds.load(path)
        return self.digest(path)


def _content_id(arguments: GenerateArguments, settings: Config, files: _InputFiles) -> str:
    """Returns the SHA-256 of what decides about the images of a line.

    Raises:
        InvalidArgument, PayloadCorrupt: A file of embeddings is not valid.
        OSError: A file cannot be read.
    """
    generate = {name: value for name, value in asdict(settings.generate).items() if name not in _NOT_IN_ID}
    content = {
        "prompt": arguments.prompt,
        "prompt_embeds": files.embeds_digest(arguments.prompt_embeds),
        "negative_prompt": arguments.negative_prompt,
        "image": files.digest(arguments.image),
        "reference": files.digest(arguments.reference),
        "omni": [files.digest(path) for path in arguments.omni],
        "output": arguments.output,
        "generate": generate,
        "encode": asdict(settings.encode),
        "condition": asdict(settings.condition) if arguments.reference is not None else None,
    }
    # What is not set is left out, so that options which are added later change no id.
    return hashlib.sha256(json.dumps(_without_none(content), sort_keys=True).encode()).hexdigest()


def _prompt_line(number: int, content: str, arguments: GenerateArguments, settings: Config, folder: Path) -> PromptLine:
    """Makes a line with its job, and checks the input files.

    Args:
        number: Number of the line.
        content: The id of its content with its number among equal lines.
        arguments, settings: What the job is made of.
        folder: The output folder.

    Raises:
        click.UsageError, InvalidArgument: Options contradict each other or are not valid.
        OSError: A file cannot be read.
    """
    id = hashlib.sha256(content.encode()).hexdigest()
    if settings.generate.seed is None:
        settings = replace(settings, generate=replace(settings.generate, seed=int(id[:8], 16)))
    output = f"{folder}{os.sep}" if arguments.output is None else str(folder / arguments.output)
    source = (arguments.prompt or "") if arguments.prompt_embeds is None else Path(arguments.prompt_embeds)
    job = image_job(replace(arguments, output=output), settings, source, jobs=1)
    job.check_inputs()
    return PromptLine(number, id, arguments, settings.generate.timeout_s, job)


def _check_files(name: str, lines: Iterable[PromptLine], waiting: Collection[str]) -> None:
    """Checks that the named files of lines differ, and that those of `waiting` ids can be written.

    A file that exists may be the image of the line, from a run that ended before its record was written.

    Raises:
        InvalidArgument: PROMPTS_INVALID, two lines have one file.
        OSError: A file cannot be written.
    """
    seen: dict[Path, int] = {}
    errors = []
    for line in lines:
        if line.arguments.output is None:
            continue
        targets = line.job.targets
        for path in targets.paths():
            if path in seen:
                errors.append(f"line {line.number}: output: {path} is that of line {seen[path]}, too: rename it")
            seen[path] = line.number
        if line.id in waiting:
            targets.check(again=True)
    if errors:
        raise _invalid(name, errors)


def _setting(key: str) -> Setting:
    """Returns the setting that a key of a line names. Raises ValueError."""
    if key in _BY_KEY:
        return _BY_KEY[key]
    near = difflib.get_close_matches(key, [*_BY_KEY, *_TEXTS, "omni"], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`zrelay generate --help` lists the options"
    raise ValueError(f"unknown key {key!r}; {hint}")


def _keys() -> Iterator[tuple[str, Setting]]:
    """Yields the keys of lines: TOML keys, and the names of flags, which come last and take precedence."""
    settings = [one for one in request_settings(*_SECTIONS) if one.dotted != "encode.deterministic"]
    for one in settings:
        yield one.key, one
    for one in settings:
        for flag in one.flags:
            yield flag.removeprefix("--").replace("-", "_"), one


_BY_KEY = dict(_keys())


def _text(key: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{key}: expected a string, got {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{key}: expected Unicode text, got an unpaired surrogate") from None
    return value


def _texts(key: str, value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key}: expected a list of strings, got {value!r}")
    return texts


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


def _message(error: Exception) -> str:
    if isinstance(error, OSError):
        return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    if isinstance(error, click.UsageError):  # names flags, which are keys here
        return re.sub(r"--([a-z][a-z-]+)", lambda match: match[1].replace("-", "_"), error.message)
    return error.message if isinstance(error, ZrelayError) else str(error)


def _invalid(name: str, errors: Sequence[str]) -> InvalidArgument:
    if len(errors) == 1:
        return InvalidArgument(f"{name}: {errors[0]}", field="prompts", reason="PROMPTS_INVALID")
    shown = [f"  {error}" for error in errors[:_ERRORS_SHOWN]]
    if len(errors) > len(shown):
        shown.append(f"  and {len(errors) - len(shown)} more")
    message = "\n".join([f"{name}: {len(errors)} lines are invalid; nothing was run", *shown])
    return InvalidArgument(message, field="prompts", reason="PROMPTS_INVALID")
