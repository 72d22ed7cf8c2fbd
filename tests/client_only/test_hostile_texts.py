"""Texts of servers and files reach the terminal without characters that control it; ids and commands can be pasted."""

import ast
import io
import json
import shlex
import unicodedata
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.structure import ROOT, parsed, shipped
from tests.helpers.command_line import Completed, run_zrelay
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1 import jobs_pb2
from zrelay_client.cli import cli
from zrelay_client.cli._output import Console, echo, print_check, print_fields, print_json, print_table, show_event
from zrelay_client.events import Notice
from zrelay_client.testing import FakeServices
from zrelay_client.testing.generator import FakeGenerator
from zrelay_shared import exits, texts
from zrelay_shared.errors import FailedPrecondition
from zrelay_shared.rpc import Context
from zrelay_shared.wire import Parcel

pytestmark = pytest.mark.hostile

CONTROLS = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x7f\u202egnp\u2066\u200f\u061c\u2028"
HOSTILE = f"busy{CONTROLS}\nerror: forged"
IDS = ("$(id)", "-o", "a b", "a;b", "../a", f"a{CONTROLS}", "a" * 65, "ä", "")
JOB = "0123456789abcdef"


def controls(text: str) -> list[str]:
    """Returns the characters of a text that a terminal may execute, or that it cannot show."""
    bidi = {"\u061c", "\u200e", "\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}
    return [c for c in text if c not in "\t\n" and (unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in bidi)]


class HostileGenerator(FakeGenerator):
    """A generator whose texts are hostile. Its only job has the id `job_id`."""

    job_id = JOB

    async def GetInfo(
        self, parcel: Parcel[pb.GeneratorServiceGetInfoRequest], context: Context
    ) -> pb.GeneratorServiceGetInfoResponse:
        info = await super().GetInfo(parcel, context)
        info.model_id = info.device.name = info.device.compute_dtype = info.version.version = HOSTILE
        info.version.libraries[HOSTILE] = HOSTILE
        info.features.add(name=HOSTILE, available=True, note=HOSTILE)
        return info

    async def GetJob(self, parcel: Parcel[pb.GetJobRequest], context: Context) -> pb.GetJobResponse:
        self._receive("GetJob", parcel.message)
        return pb.GetJobResponse(job=self._failed())

    async def CancelJob(self, parcel: Parcel[pb.CancelJobRequest], context: Context) -> pb.CancelJobResponse:
        return pb.CancelJobResponse(job=self._failed())

    async def ListJobs(self, parcel: Parcel[pb.ListJobsRequest], context: Context) -> pb.ListJobsResponse:
        return pb.ListJobsResponse(jobs=[self._failed()])

    def _failed(self) -> jobs_pb2.Job:
        error = jobs_pb2.JobError(reason="BUSY", message=HOSTILE)
        state = jobs_pb2.JobState.JOB_STATE_FAILED
        return jobs_pb2.Job(job_id=self.job_id, request_id=HOSTILE, state=state, error=error, accepted_at=1.0)


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServices]:
    services = FakeServices()
    services.generator = HostileGenerator()
    with services:
        yield services


@pytest.fixture
def zrelay(fake: FakeServices, empty_home: Path) -> "Zrelay":
    return Zrelay(fake)


class Zrelay:
    """Runs commands against the hostile generator."""

    def __init__(self, fake: FakeServices) -> None:
        self._fake = fake

    def __call__(self, *args: str, roles: tuple[str, ...] = ("encoder", "generator")) -> Completed:
        endpoints = {**self._fake.endpoints}
        return run_zrelay(*args, *(f"--{role}={endpoints[role]}" for role in roles))


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize(
    ("args", "method", "code"),
    [
        ("info", "", exits.OK),
        ("doctor", "", exits.OK),
        ("generate fox", "Generate", exits.REFUSED),
        ("jobs list", "", exits.OK),
        (f"jobs fetch {JOB}", "WatchJob", exits.REFUSED),
        (f"jobs watch {JOB}", "WatchJob", exits.REFUSED),
        (f"jobs cancel {JOB}", "GetJob", exits.REFUSED),
    ],
)
def test_commands_print_no_controls_of_a_server(
    fake: FakeServices, zrelay: Zrelay, args: str, method: str, code: int, flags: tuple[str, ...]
) -> None:
    if method:
        fake.generator.fail_next(FailedPrecondition(HOSTILE), method=method)
    ran = zrelay(*args.split(), *flags, roles=("generator",) if args.startswith("jobs") else ("encoder", "generator"))
    assert ran.returncode == code, ran.stderr
    assert controls(ran.stdout + ran.stderr) == []
    assert r"\x1b]0;owned" in ran.stdout + ran.stderr or r"\u001b]0;owned" in ran.stdout, "the text is shown, escaped"
    assert "\nerror: forged" not in ran.stdout + ran.stderr, "and adds no line of its own"
    if flags and ran.stdout:
        assert any(HOSTILE in text for text in _strings(json.loads(ran.stdout)))


def _strings(value: object) -> list[str]:
    """Returns every text of a JSON value, keys included."""
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _strings(part)]
    if isinstance(value, list):
        return [text for part in value for text in _strings(part)]
    return [value] if isinstance(value, str) else []


def test_info_prints_no_controls_of_an_image(empty_home: Path) -> None:
    prompt, name = f"fox{CONTROLS}\nsteps  7", "\udcff\x1b[2J.png"  # a name that is no UTF-8
    with FakeServices() as services, services.client() as client:
        (image,) = client.generate(prompt, width=64, height=64).images
    Path(name).write_bytes(image.data)
    ran = run_zrelay("info", name)
    assert r"fox\x1b]0;owned" in ran.stdout and controls(ran.stdout) == []
    assert ran.stdout.splitlines()[0].split() == ["file", r"\udcff\x1b[2J.png"]
    assert "\nsteps  7" not in ran.stdout
    ran = run_zrelay("info", name, "--json")
    values = json.loads(ran.stdout)
    assert (controls(ran.stdout), values["file"]) == ([], name) and prompt in _strings(values)
    for args in (("info", f"missing{name}"), ("generate", "fox", f"--{name}")):
        ran = run_zrelay(*args)
        assert (ran.returncode in (exits.LOCAL_FILE, exits.USAGE), controls(ran.stderr)) == (True, []), ran.stderr


def test_a_terminal_gets_no_controls_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    written = Terminal()
    with redirect_stdout(written), redirect_stderr(written), Console() as console:
        for columns in ("40", "400"):
            monkeypatch.setenv("COLUMNS", columns)
            print_table(("JOB", "NOTE"), [("a", HOSTILE)], below=("NOTE",))
            print_table(("JOB", "NOTE"), [("a", HOSTILE)], wrap=("NOTE",))
        print_fields(HOSTILE, [(0, HOSTILE, HOSTILE)])
        print_check("ok", HOSTILE, HOSTILE)
        print_json({HOSTILE: HOSTILE})
        console.status(HOSTILE, completed=1, total=2, note=HOSTILE)
        console.status(HOSTILE)
        console.message(HOSTILE, wrap=True)
        console.message(HOSTILE)
        console.result(HOSTILE)
        show_event(console, Notice("X", HOSTILE))
        echo(HOSTILE)
    for sequence in ("\x1b]0", "\x1b[2J\x9b", "\x07", "\x9b", "\x7f", "\u202e", "\u2066", "\u200f", "\u061c", "\u2028"):
        assert sequence not in written.getvalue(), repr(sequence)


@pytest.mark.parametrize("job_id", IDS, ids=ascii)
def test_ids_of_jobs_have_an_alphabet(fake: FakeServices, zrelay: Zrelay, job_id: str) -> None:
    assert isinstance(fake.generator, HostileGenerator)
    fake.generator.job_id = job_id
    try:
        ran = zrelay("jobs", "list", roles=("generator",))
        assert ran.returncode == exits.BUG and "expected the id of a job from the generator" in ran.stderr, ran.stderr
        args = ["jobs", "fetch", "--generator", fake.endpoints["generator"]]
        completed = ShellComplete(cli, {}, "zrelay", "_ZRELAY_COMPLETE").get_completions(args, "")
        assert [item.value for item in completed] == []
    finally:
        fake.generator.job_id = JOB
    if job_id and not job_id.startswith("-"):
        for verb in ("fetch", "watch", "cancel"):
            ran = zrelay("jobs", verb, job_id, roles=("generator",))
            assert ran.returncode == exits.USAGE and "expected the id of a job" in ran.stderr, ran.stderr
            assert controls(ran.stderr) == []


def test_commands_to_paste_are_quoted(empty_home: Path) -> None:
    profile = "it's; rm -rf ~ $(id)"
    with FakeServices() as services:
        where = "\n".join(
            f"[profile.{json.dumps(profile)}.{role}]\nendpoint = {json.dumps(endpoint)}"
            for role, endpoint in services.endpoints.items()
        )
        (empty_home / "config.toml").write_text(where)
        ran = run_zrelay("generate", "fox", "--detach", "--profile", profile)
    assert ran.returncode == exits.OK, ran.stderr
    job_id = ran.stdout.strip()
    watch, fetch = [shlex.split(line) for line in ran.stderr.splitlines() if line.startswith("  zrelay")]
    assert watch == ["zrelay", "jobs", "watch", job_id, "--profile", profile]
    assert fetch == ["zrelay", "jobs", "fetch", job_id, "--profile", profile, "-o", "images/"]
    completed = ShellComplete(cli, {}, "zrelay", "_ZRELAY_COMPLETE").get_completions(["generate", "--profile"], "")
    assert [item.value for item in completed] == [], "a shell would interpret the name"


@given(st.text(st.characters(codec=None) | st.sampled_from(CONTROLS)))
def test_any_text_can_be_shown(text: str) -> None:
    assert controls(texts.printable(text)) == []
    assert not {"\t", "\n"} & set(texts.one_line(text))
    assert texts.printable(texts.printable(text)) == texts.printable(text)
    dumped = texts.printable_json(json.dumps({text: text}, ensure_ascii=False))
    assert controls(dumped) == [] and json.loads(dumped) == {text: text}


def test_text_of_any_script_is_shown_as_it_is() -> None:
    for text in ("ein roter Fuchs", "赤い狐", "ثعلب أحمر", "שועל אדום", "क्षि", "👩‍🚀 e\u0301", "a\tb\nc"):
        assert texts.printable(text) == text


def test_one_module_prints() -> None:
    """Every other module of the command line prints through `_output`, which escapes."""
    found = []
    for name, path in shipped(ROOT).items():
        if not name.startswith("zrelay_client") or name == "zrelay_client.cli._output":
            continue
        for node in ast.walk(parsed(path)):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("print", "click.echo", "click.secho", "traceback.print_exc") or called.endswith(
                ("stdout.write", "stderr.write")
            ):
                found.append(f"{name}:{node.lineno}: {called}")  # type: ignore[attr-defined]
    assert found == []
    assert click.echo.__module__.startswith("click")
