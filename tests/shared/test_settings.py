"""Settings: one definition gives flag, variable, TOML key, help and documentation, and all of them agree."""

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from zrelay_shared import config
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.service.command import SettingsCommand, load_settings, service_command
from zrelay_shared.service.roles import SERVICE_CONFIGS, ServiceConfig
from zrelay_shared.service.settings import GROUPS, NONE, Setting, Value, describe, setting

MIB = 1 << 20
SETTINGS = [one for role, kind in SERVICE_CONFIGS.items() for one in describe(kind, role)]
REFERENCE = Path(__file__).parents[2] / "docs/reference/configuration.md"


@dataclass(frozen=True)
class Example:
    """One field of each kind."""

    text: str = setting("a", help="A text.", group="Server")
    word: str = setting("b", help="A word.", group="Server", choices=("a", "b"))
    size_bytes: int = setting(MIB, help="A size.", group="Limits", key="size_mib", unit="MiB", scale=MIB, minimum=0)
    hours_s: float = setting(3600.0, help="A time.", group="Limits", key="hours_h", unit="hours", scale=3600.0)
    count: int | None = setting(None, help="A count.", group="Limits", minimum=-5, maximum=9)
    flag: bool = setting(False, help="A switch.", group="Server")
    folder: Path | None = setting(None, help="A folder.", group="Storage")
    form: str | None = setting(None, help="A form.", group="Storage", choices=("a", "b"))
    place: Path = setting(Path("p"), help="A folder that must be.", group="Storage")


BY_NAME = {one.name: one for one in describe(Example, "example")}


def written(value: Any) -> str:
    """A value as TOML writes it."""
    return json.dumps(str(value)) if isinstance(value, str | Path) else str(value).lower()


def sample(one: Setting) -> tuple[str, Value]:
    """A value that differs from the default: as users write it, and as the field holds it."""
    if one.choices:
        word = next(word for word in one.choices if word != one.default)
        return word, word
    if one.kind is bool:
        return ("false", False) if one.default else ("true", True)
    if one.kind is Path:
        return "/some/folder", Path("/some/folder")
    if one.kind is str:
        return "127.0.0.1:9", "127.0.0.1:9"
    number = one.example
    assert isinstance(number, int | float)
    text = str(number - 1 if "at most" in one.limits else number + 1)
    return text, one.parse(text)


def the(role: str, values: dict[str, Any], file: Path, environ: dict[str, str]) -> ServiceConfig:
    kind = SERVICE_CONFIGS[role]
    required = {f"{role}.model": Path("/m")}
    return config.load_service(kind, file, environ, profile="p", flags=required | values)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    file.write_text("[profile.p]\n")
    return file


@pytest.mark.parametrize("one", SETTINGS, ids=lambda one: one.dotted)
def test_each_setting_by_flag_variable_and_key(one: Setting, empty: Path) -> None:
    text, value = sample(one)
    assert value != one.default
    by_variable = the(one.section, {one.dotted: None}, empty, {one.variable: text})
    assert getattr(by_variable, one.name) == value

    number = one.parse(text)
    toml = written(one.to_user(number))
    empty.write_text(f"[profile.p.{one.section}]\n{one.key} = {toml}\n")
    by_key = the(one.section, {one.dotted: None}, empty, {})
    assert getattr(by_key, one.name) == value

    seen: dict[str, Any] = {}
    command = SettingsCommand(
        "x", kind=SERVICE_CONFIGS[one.section], callback=lambda **values: seen.update(values), help=""
    )
    forms = {True: one.flags[0], False: f"--no-{one.flags[0][2:]}"}
    arguments = [forms[bool(value)]] if one.kind is bool else [one.flags[0], text]
    command.main(arguments, standalone_mode=False)
    assert seen.pop(one.name) == value
    assert set(seen.values()) == {None}, "what is not given is None, so that other sources count"
    if one.kind is bool:
        command.main([forms[not value]], standalone_mode=False)
        assert seen[one.name] is not value


OPTIONAL = [one for one in SETTINGS if one.optional]


SECURITY = ("security", "token_listen", "tokens", "tls_certificate", "tls_key", "tls_ca", "health_listen")


def test_the_settings_that_may_be_none() -> None:
    assert {one.dotted for one in OPTIONAL} == {
        *(f"{role}.{key}" for role in SERVICE_CONFIGS for key in ("address_file", "threads", "memory_budget_mib")),
        *(f"vision.{key}" for key in ("qwen3_vl", "siglip", "model", "reference_stats", "hidden_layer", "cache")),
        *("encoder.cache", "generator.state", "generator.max_caller_waiting"),
        *(f"{role}.{key}" for role in SERVICE_CONFIGS for key in SECURITY),
    }


@pytest.mark.parametrize("one", OPTIONAL, ids=lambda one: one.dotted)
def test_none_resets_an_optional_setting(one: Setting, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By flag, by variable, and by key, each over what a source of lower precedence sets or computes."""
    text, value = sample(one)
    key = f"[profile.p.{one.section}]\n{one.key} = "
    empty.write_text(key + written(one.to_user(value)))
    assert getattr(the(one.section, {one.dotted: None}, empty, {}), one.name) == value
    assert getattr(the(one.section, {one.dotted: None}, empty, {one.variable: NONE}), one.name) is None
    assert getattr(the(one.section, {one.dotted: NONE}, empty, {one.variable: text}), one.name) is None

    monkeypatch.setenv("ZRELAY_CONFIG", str(empty))
    monkeypatch.setenv(one.variable, text)
    if one.section != "vision":
        monkeypatch.setenv(f"ZRELAY_{one.section.upper()}_MODEL", "/m")
    kind = SERVICE_CONFIGS[one.section]
    seen: list[ServiceConfig] = []

    def run(profile: str | None, **values: Any) -> None:
        seen.append(load_settings(kind, profile, values))

    command = SettingsCommand("x", kind=kind, callback=run, help="")
    command.main(["--profile", "p", one.flags[0], NONE], standalone_mode=False)
    command.main(["--profile", "p"], standalone_mode=False)
    assert [getattr(settings, one.name) for settings in seen] == [None, value]

    empty.write_text(key + written(NONE))
    effective = {found.setting.dotted: found for found in config.load(empty, {}, profile="p").settings}[one.dotted]
    assert (effective.value, effective.origin) == (None, f"{empty} [profile.p.{one.section}]")
    assert one.to_user(effective.value) == NONE == one.format(effective.value)


@pytest.mark.parametrize("one", OPTIONAL, ids=lambda one: one.dotted)
def test_none_is_shown_as_a_value(one: Setting) -> None:
    command = SettingsCommand("x", kind=SERVICE_CONFIGS[one.section], callback=lambda **_: None, help="")
    help = CliRunner().invoke(command, ["--help"]).output
    assert f"{one.flags[-1]} {one.metavar}" in help and one.metavar.endswith(f"|{NONE}")
    assert one.description.endswith(" May be none.")
    assert f"`{one.variable}` | {one.default_text or NONE} | {one.description} |" in REFERENCE.read_text()


def test_a_path_of_the_name_none(empty: Path) -> None:
    folder, place = BY_NAME["folder"], BY_NAME["place"]
    assert folder.parse("none") is folder.from_toml("none") is None
    assert folder.parse("./none") == folder.from_toml("./none") == Path("none")
    assert place.parse("none") == place.from_toml("none") == Path("none"), "it must have a value"
    assert place.metavar == "DIR" and "none" not in place.description
    settings = the("encoder", {}, empty, {"ZRELAY_ENCODER_ADDRESS_FILE": "./none"})
    assert settings.address_file == Path("none")


def test_a_client_resets_an_endpoint_and_a_default(empty: Path) -> None:
    empty.write_text('[profile.p.vision]\nendpoint = "box"\n[generate]\nwidth = 512\nformat = "none"\n')
    environ = {"ZRELAY_VISION": NONE, "ZRELAY_GENERATE_WIDTH": NONE, "ZRELAY_GENERATE_FORMAT": "png"}
    loaded = config.load(empty, environ, profile="p")
    assert (loaded.vision.endpoint, loaded.generate.width, loaded.generate.format) == (None, None, "png")
    assert loaded.origins["vision.endpoint"] == "env ZRELAY_VISION"
    assert config.load(empty, {}, profile="p").generate.format is None


@pytest.mark.parametrize("one", SETTINGS, ids=lambda one: one.dotted)
def test_each_setting_is_described(one: Setting) -> None:
    assert one.help.endswith(".") and one.help[0].isupper()
    assert one.group in GROUPS
    assert f"| `{one.key}` | " in REFERENCE.read_text() and f"`{one.variable}`" in REFERENCE.read_text()
    if not one.required:
        one.check(one.default)


@pytest.mark.parametrize("role", SERVICE_CONFIGS)
def test_every_field_is_a_setting_and_listed_in_the_help(role: str) -> None:
    kind = SERVICE_CONFIGS[role]
    assert {one.name for one in describe(kind, role)} == {item.name for item in fields(kind)}
    shown = CliRunner().invoke(service_command(kind, lambda _: pytest.fail("not built"), help="Serve."), ["--help"])
    assert shown.exit_code == 0
    for one in describe(kind, role):
        assert f"  {one.flags[0]}" in shown.output
    for group in {one.group for one in describe(kind, role)}:
        assert f"\n{group}:\n" in shown.output


def test_names_are_unique() -> None:
    every = [one for section in (*config.ROLES, "generate") for one in config.settings_of(section)]
    assert len({one.variable for one in every}) == len({one.dotted for one in every}) == len(every)


def test_flag_over_variable_over_file_over_default(empty: Path) -> None:
    empty.write_text("[profile.p.generator]\nmax_side = 3\n")
    for flag, environ, expected in (
        (1000, {"ZRELAY_GENERATOR_MAX_SIDE": "2000"}, 1000),
        (None, {"ZRELAY_GENERATOR_MAX_SIDE": "2000"}, 2000),
        (None, {"ZRELAY_GENERATOR_MAX_SIDE": ""}, 3),
    ):
        loaded = the("generator", {"generator.max_side": flag, "generator.min_side": 1}, empty, environ)
        assert loaded.max_side == expected  # type: ignore[attr-defined]
    empty.write_text("[profile.p]\n")
    assert the("generator", {}, empty, {}).max_side == 4096  # type: ignore[attr-defined]


def test_defaults_that_depend_on_the_environment(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZRELAY_STATE", str(tmp_path))
    assert the("generator", {}, empty, {}).state == tmp_path  # type: ignore[attr-defined]
    assert the("encoder", {}, empty, {}).cache == tmp_path / "cache"  # type: ignore[attr-defined]
    vision = the("vision", {}, empty, {})
    assert vision.reference_stats == tmp_path / "references"  # type: ignore[attr-defined]
    assert the("generator", {}, empty, {"ZRELAY_GENERATOR_STATE": "none"}).state is None  # type: ignore[attr-defined]


def test_a_home_folder_in_a_path_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert BY_NAME["folder"].parse("~/m") == BY_NAME["folder"].from_toml("~/m") == Path("/home/somebody/m")


def test_settings_that_do_not_fit_together(empty: Path) -> None:
    with pytest.raises(InvalidArgument, match="generator: min_side: expected at most max_side") as refusal:
        the("generator", {"generator.min_side": 9999}, empty, {})
    assert refusal.value.reason == "CONFIG_INVALID"


def test_a_missing_model_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZRELAY_CONFIG", str(tmp_path / "none.toml"))
    kind = SERVICE_CONFIGS["encoder"]
    nothing = dict.fromkeys((item.name for item in fields(kind)), None)
    with pytest.raises(click.UsageError, match="--model DIR, or set ZRELAY_ENCODER_MODEL"):
        load_settings(kind, None, nothing)
    assert "ZRELAY_ENCODER_MODEL" not in os.environ


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for one in BY_NAME.values():
        try:
            value = one.parse(text)
        except ValueError as error:
            assert str(error).startswith("expected ") and ", got " in str(error)
        else:
            one.check(value)


@given(st.integers(0, 1 << 40))
def test_whole_numbers_of_a_unit_survive(number: int) -> None:
    one = BY_NAME["size_bytes"]
    assert one.parse(str(number)) == one.from_toml(number) == number * MIB
    assert one.parse(one.format(number * MIB)) == number * MIB


@given(st.floats(0, 1e9))
def test_numbers_of_a_unit_survive(number: float) -> None:
    one = BY_NAME["hours_s"]
    value = one.parse(repr(number))
    assert isinstance(value, float)
    assert one.from_toml(number) == value
    assert one.parse(one.format(value)) == pytest.approx(value)


@given(
    st.one_of(
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.lists(st.integers()),
        st.dictionaries(st.text(), st.text()),
    )
)
def test_any_toml_value_is_read_or_refused(value: object) -> None:
    for one in BY_NAME.values():
        try:
            read = one.from_toml(value)
        except ValueError as error:
            assert str(error).startswith("expected ")
        else:
            assert read is None or isinstance(read, one.kind)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("word", "c", "expected one of a, b, got 'c'"),
        ("count", "x", "expected a whole number or none, got 'x'"),
        ("count", "²", "expected a whole number or none, got '²'"),
        ("count", "７", "expected a whole number or none, got '７'"),
        ("hours_s", "７", "expected a number, got '７'"),
        ("count", "None", "expected a whole number or none, got 'None'"),
        ("count", "10", "expected at least -5 and at most 9 or none, got 10"),
        ("form", "c", "expected one of a, b or none, got 'c'"),
        ("size_bytes", "none", "expected a whole number, got 'none'"),
        ("word", "none", "expected one of a, b, got 'none'"),
        ("size_bytes", "-1", "expected at least 0, got -1"),
        ("hours_s", "nan", "expected a number, got nan"),
        ("flag", "perhaps", "expected true or false, got 'perhaps'"),
        ("folder", "", "expected a path or none, got an empty string"),
        (
            "folder",
            "~nobody-of-this-name/x",
            "expected a path or none, got '~nobody-of-this-name/x', whose home folder is unknown",
        ),
        ("folder", "a\0b", "expected a path or none, got 'a\\x00b'"),
    ],
)
def test_refusals_say_what_is_expected(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        BY_NAME[name].parse(text)
    assert str(refusal.value) == message


def test_a_secret_and_a_list() -> None:
    @dataclass(frozen=True)
    class Others:
        token: str | None = setting(None, help="A token.", group="Server", secret=True)
        hosts: str | None = setting(None, help="Hosts.", group="Server", several=True, variable="")

    token, hosts = describe(Others, "others")
    assert token.secret and hosts.variable == "ZRELAY_OTHERS"
    assert hosts.from_toml(["a", "b"]) == "a,b"
    with pytest.raises(ValueError, match="expected a string or none, got 1"):
        hosts.from_toml(["a", 1])
