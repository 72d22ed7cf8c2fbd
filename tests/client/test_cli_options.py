"""Every option of the library has a flag, a variable, a TOML key and a line of the reference, from one definition."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
import pytest

from tests.helpers.command_line import run_zrelay
from zrelay_client.cli import cli
from zrelay_client.cli._options import OptionsCommand
from zrelay_client.options import (
    ConditionOptions,
    EncodeImagesOptions,
    EncodeOptions,
    GenerateOptions,
)
from zrelay_encoder.api.capabilities import CAPABILITIES
from zrelay_shared import config
from zrelay_shared.config import settings_of
from zrelay_shared.requests import REQUEST_CONFIGS
from zrelay_shared.service.options import SettingOption
from zrelay_shared.service.settings import REQUEST_GROUPS, Setting, describe, setting

from .conftest import Services, Zrelay

REFERENCE = (Path(__file__).parents[2] / "docs/reference/configuration.md").read_text()
OPTIONS: dict[str, type[Any]] = {
    "generate": GenerateOptions,
    "encode": EncodeOptions,
    "encode_images": EncodeImagesOptions,
    "condition": ConditionOptions,
}
INPUTS = {
    # section: options of the library that describe the inputs of one call, and are arguments of the commands
    "generate": {"image", "reference", "conditioning", "omni"},
    "encode": {"image_count"},
    "encode_images": set[str](),
    "condition": set[str](),
}
OF_THE_CLIENT = {"generate": {"timeout_s"}}
"""Settings that are not options of a request."""
COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    # section: the commands that have its flags
    "generate": (("generate",),),
    "encode": (("generate",), ("encode",)),
    "encode_images": (("vision", "encode"),),
    "condition": (("generate",), ("vision", "condition")),
}
PATHS = sorted({path for paths in COMMANDS.values() for path in paths})
CAPABILITY_OF = {
    # option of EncodeOptions: its capability in GetInfo
    "system_prompt": "encode.system_prompt",
    "assistant_prefill": "encode.prefill",
    "think_mode": "encode.think",
    "template": "encode.template",
    "quote_stripping": "encode.quote_stripping",
    "clean_whitespace": "encode.clean_whitespace",
    "hidden_layer": "encode.layer",
    "pad_to": "encode.pad_to",
    "deterministic": "encode.deterministic",
}
SETTINGS = [one for section in REQUEST_CONFIGS for one in settings_of(section)]


def command_of(path: tuple[str, ...]) -> OptionsCommand:
    """Returns a command by its words after `zrelay`."""
    command: click.Command | None = cli
    for word in path:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(cli), word)
    assert isinstance(command, OptionsCommand)
    return command


def flags_of(path: tuple[str, ...]) -> dict[str, SettingOption]:
    """Returns dotted key -> option of a command."""
    options = [param for param in command_of(path).params if isinstance(param, SettingOption)]
    return {option.setting.dotted: option for option in options}


@pytest.mark.parametrize("section", OPTIONS)
def test_library_and_settings_have_the_same_options(section: str) -> None:
    library = {item.name for item in fields(OPTIONS[section])}
    names = {one.name for one in settings_of(section)}
    assert names - OF_THE_CLIENT.get(section, set()) == library - INPUTS[section]
    assert {one.name for one in settings_of(section)} == {item.name for item in fields(REQUEST_CONFIGS[section])}


@pytest.mark.parametrize("one", SETTINGS, ids=lambda one: one.dotted)
def test_each_option_has_flags_a_key_and_a_line_of_the_reference(one: Setting) -> None:
    for path in COMMANDS[one.section]:
        if one.dotted == "encode.deterministic" and path == ("generate",):
            continue  # `--deterministic` of `generate` sets both
        assert set(one.flags) <= set(flags_of(path)[one.dotted].opts)
    assert one.group in REQUEST_GROUPS
    assert one.help.endswith(".") and one.help[0].isupper()
    assert f"| `{one.key}` | " in REFERENCE and f"`{one.variable}`" in REFERENCE


@pytest.mark.parametrize("one", SETTINGS, ids=lambda one: one.dotted)
def test_each_option_by_variable_and_key(one: Setting, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    text = one.format(one.parse(one.format(_sample(one))))
    by_variable = config.load(file, {one.variable: text})
    file.write_text(f"[{one.section}]\n{one.key} = {_toml(_sample(one))}\n")
    by_key = config.load(file, {})
    for loaded in (by_variable, by_key):
        assert getattr(getattr(loaded, one.section), one.name) == _sample(one)


def test_every_input_is_an_argument_or_an_option() -> None:
    generate = {param.name for param in command_of(("generate",)).params}
    assert {"image", "reference", "omni"} <= generate
    assert "image_count" in {param.name for param in command_of(("encode",)).params}


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_a_flag_has_one_meaning_in_a_command(path: tuple[str, ...]) -> None:
    spellings = [name for param in command_of(path).params for name in (*param.opts, *param.secondary_opts)]
    assert len(spellings) == len(set(spellings))


def test_what_no_server_offers_is_marked() -> None:
    available = {capability.name: capability.available for capability in CAPABILITIES}
    by_name = {one.name: one for one in settings_of("encode")}
    for name, capability in CAPABILITY_OF.items():
        assert ("(not offered yet)" in by_name[name].help) is not available[capability], name
    missing = [word for word in by_name["long_prompt_mode"].choices if not available[f"encode.long_prompt.{word}"]]
    assert f"{', '.join(missing[:-1])} and {missing[-1]} are not offered yet" in by_name["long_prompt_mode"].help


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_help_lists_options_under_headings(path: tuple[str, ...]) -> None:
    shown = run_zrelay(*path, "--help").stdout
    headings = [line.removesuffix(":") for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    order = [heading for heading in (*REQUEST_GROUPS, "Other") if heading in headings]
    assert headings == order and "Connection" in order and order[-1] == "Other"
    for option in flags_of(path).values():
        assert f"  {option.opts[0]}" in shown
    assert max(map(len, shown.splitlines())) <= 100


async def test_flags_variables_and_keys_reach_the_generator(
    services: Services, zrelay: Zrelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text(
        '[generate]\nsigmas = [1.0, 0.5]\nstrength = 0.5\nlabels = { project = "foxes" }\n'
        '[encode]\nlong_prompt_mode = "refuse"\n'
    )
    monkeypatch.setenv("ZRELAY_GENERATE_CFG_TRUNCATION", "0.9")
    flags = ["--label", "a=b=c", "--no-prompt-in-file", "--cfg-normalization", "0.5", "--size", "64x64", "--seed", "7"]
    ran = await zrelay("generate", "a fox", "-o", "a.png", *flags, *services.flags)
    assert ran.returncode == 0, ran.stderr
    shown = (await zrelay("info", "a.png")).stdout
    values = dict(line.strip().split(maxsplit=1) for line in shown.splitlines() if len(line.split()) > 1)
    assert values | {"cfg_truncation": "0.9", "cfg_normalization": "0.5", "a": "b=c", "sigmas": "1, 0.5, 0"} == values
    assert "project" not in values, "a flag replaces the list of the file"
    assert values["prompt"] == "-"
    refused = await zrelay("generate", "fox " * 1200, "-o", "b.png", *services.flags)
    assert refused.returncode == 3 and "long_prompt_mode" in refused.stderr, refused.stderr


async def test_words_may_have_hyphens_and_wrong_values_name_the_flag(zrelay: Zrelay) -> None:
    for flags, message in (
        (["--guidance-scale", "nan"], "'--guidance-scale': expected a number"),
        (["--label", "x"], "'--label': expected KEY=VALUE, got 'x'"),
        (["--sigmas", "1,x"], "'--sigmas': expected numbers separated by commas, got '1,x'"),
        (["--long-prompt-mode", "cut"], "expected one of truncate, interpolate, pool, attention_pool, refuse"),
        (["--blend", "adain-per-dim"], "--blend is for reference images: add --reference IMAGE"),
        (["--strength", "0.5"], "--strength is for an image to start from: add --image FILE"),
        (["--preview-every", "2"], "--preview-every is for previews: add --preview PATH"),
        (["--prompt-embeds", "x.safetensors", "--text-limit", "5"], "pass it to `zrelay encode`"),
    ):
        prompt = [] if "--prompt-embeds" in flags else ["fox"]
        ran = await zrelay("generate", *prompt, *flags)
        assert ran.returncode == 2 and message in ran.stderr, ran.stderr


def test_the_word_none_resets_options_of_requests(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[generate]\nwidth = 64\nlabels = ["a=b"]\n[encode]\nthink_mode = "content"\n')
    loaded = config.load(file, {"ZRELAY_GENERATE_WIDTH": "none", "ZRELAY_ENCODE_THINK_MODE": "none"})
    assert loaded.generate.width is None and loaded.generate.labels == ("a=b",)
    assert loaded.encode.think_mode == "none", "which is one of its choices"
    context = command_of(("generate",)).make_context("generate", ["fox", "--label", "none", "--height", "none"])
    flags = {"generate.labels": context.params["generate_labels"], "generate.height": context.params["generate_height"]}
    assert flags == {"generate.labels": "none", "generate.height": "none"}
    assert config.load(file, {}, flags=flags).generate.labels is None


def test_lists_and_pairs() -> None:
    @dataclass(frozen=True)
    class Lists:
        numbers: tuple[float, ...] = setting((), help="Numbers.", group="Image")
        labels: tuple[str, ...] = setting((), help="Labels.", group="Image", pairs=True)

    by_name = {one.name: one for one in describe(Lists, "lists")}
    numbers, labels = by_name["numbers"], by_name["labels"]
    assert (numbers.parse("1, 2.5"), numbers.from_toml([1, 2.5])) == ((1.0, 2.5), (1.0, 2.5))
    assert numbers.format((1.0, 2.5)) == "1,2.5" and numbers.to_user((1.0, 2.5)) == (1, 2.5)
    assert labels.parse("a=b,c=d") == labels.from_toml(["a=b", "c=d"]) == labels.from_toml({"a": "b", "c": "d"})
    for one, value, expected in (
        (numbers, "x", "expected a list of numbers, got 'x'"),
        (numbers, ["x"], "expected a number, got 'x'"),
        (labels, ["=x"], "expected KEY=VALUE, got '=x'"),
        (labels, {"a": 1}, "expected KEY=VALUE, got 1"),
    ):
        with pytest.raises(ValueError) as error:
            one.from_toml(value)
        assert str(error.value) == expected


def _sample(one: Setting) -> Any:
    """Returns a value of the setting that differs from its default."""
    if one.kind is bool:
        return True
    if one.choices:
        return one.choices[-1]
    return one.parse(one.format(one.example))


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return f'"{value}"'
    return str(value).lower()
