"""Configuration: who wins, and what is refused."""

from pathlib import Path

import pytest

from zrelay_shared import config
from zrelay_shared.errors import InvalidArgument

HOME = """
default_profile = "home"
[profile.home.encoder]
endpoint = "mac:7501"
model = "/models/z"
grace_s = 5
[profile.home.generator]
endpoint = "box:7503"
[profile.away.generator]
endpoint = "127.0.0.1:9003"
[generate]
width = 512
format = "webp"
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "config.toml"
    file.write_text(text)
    return file


def test_a_file_that_is_not_there_sets_nothing(tmp_path: Path) -> None:
    assert config.load(tmp_path / "none.toml", {}) == config.Config()


def test_flag_over_variable_over_file_over_default(tmp_path: Path) -> None:
    file = written(tmp_path, HOME)
    flags = {"encoder.endpoint": "flag:1", "generator.endpoint": None}
    environ = {"ZRELAY_ENCODER": "env:1", "ZRELAY_GENERATOR": "env:2", "ZRELAY_GENERATE_WIDTH": "256"}
    loaded = config.load(file, environ, flags=flags)
    assert loaded.profile == "home"
    assert loaded.encoder.endpoint == "flag:1"
    settings = {one.setting.dotted: (one.value, one.origin) for one in loaded.settings}
    assert settings["encoder.model"] == (Path("/models/z"), f"{file} [profile.home.encoder]")
    assert settings["encoder.grace_s"] == (5.0, f"{file} [profile.home.encoder]")
    assert settings["generator.max_side"] == (4096, "default")
    assert loaded.generator.endpoint == "env:2"
    assert loaded.vision.endpoint is None
    assert (loaded.generate.width, loaded.generate.format, loaded.generate.height) == (256, "webp", None)
    assert loaded.origins["encoder.endpoint"] == "flag"
    assert loaded.origins["generator.endpoint"] == "env ZRELAY_GENERATOR"
    assert loaded.origins["encoder.model"] == f"{file} [profile.home.encoder]"
    assert "vision.endpoint" not in loaded.origins


@pytest.mark.parametrize(
    ("environ", "flag", "endpoint"),
    [
        ({}, None, "box:7503"),
        ({"ZRELAY_PROFILE": "away"}, None, "127.0.0.1:9003"),
        ({"ZRELAY_PROFILE": "x"}, "home", "box:7503"),
    ],
)
def test_which_profile(tmp_path: Path, environ: dict[str, str], flag: str | None, endpoint: str) -> None:
    assert config.load(written(tmp_path, HOME), environ, profile=flag).generator.endpoint == endpoint


def test_a_profile_named_default_is_used_when_none_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, '[profile.default.encoder]\nendpoint = "a:1"\n')
    assert config.load(file, {}).encoder.endpoint == "a:1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[profile.home.encoder]\nendpont = 'a'", "key 'endpont' in [profile.home.encoder]; did you mean 'endpoint'?"),
        ("[profile.home.encodr]\nendpoint = 'a:1'", "did you mean 'encoder'?"),
        ("defalt_profile = 'home'", "did you mean 'default_profile'?"),
        ("[generate]\nsteps = 8", "unknown key 'steps' in [generate]"),
        ("[generate]\nwidth = 'wide'", "generate.width: expected a whole number or none, got 'wide'"),
        ("[generate]\nformat = 'gif'", "generate.format: expected one of png, jpeg, webp or none, got 'gif'"),
        ("[generate]\nwidth = true", "expected a whole number or none, got True"),
        ("[profile.home]\nencoder = 'a:1'", "profile.home.encoder: expected a table, got 'a:1'"),
        ("default_profile = 'hme'\n[profile.home.encoder]", "no profile 'hme'"),
        ("a = 1\nb = = 2", "line 2"),
    ],
)
def test_refusals_name_the_place_and_the_nearest(tmp_path: Path, text: str, says: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(InvalidArgument) as refused:
        config.load(file, {})
    assert says in refused.value.message
    assert str(file) in refused.value.message
    assert refused.value.reason == "CONFIG_INVALID"


def test_bad_variables_are_refused_by_name(tmp_path: Path) -> None:
    for variable, value in (
        ("ZRELAY_GENERATE_WIDTH", "x"),
        ("ZRELAY_ENCODER_INSECURE_LISTEN", "perhaps"),
        ("ZRELAY_GENERATE_FORMAT", "gif"),
    ):
        with pytest.raises(InvalidArgument, match=variable):
            config.load(tmp_path / "none.toml", {variable: value})


def test_unknown_variables_are_reported_with_the_nearest_name() -> None:
    environ = {"ZRELAY_ENCODR": "a:1", "ZRELAY_ENCODER": "a:1", "ZRELAY_STATE": "/s", "HOME": "/"}
    lines = config.unknown_variables(environ)
    assert lines == ["ZRELAY_ENCODR is not a variable of zrelay; did you mean 'ZRELAY_ENCODER'?"]
