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


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ZRELAY_GENERATE_STPES", "ZRELAY_GENERATE_NUM_INFERENCE_STEPS"),
        ("ZRELAY_GENERATE_WIDHT", "ZRELAY_GENERATE_WIDTH"),
        ("ZRELAY_GENRATE_WIDTH", "ZRELAY_GENERATE_WIDTH"),
        ("ZRELAY_ENCODE_IMAGES_DTYP", "ZRELAY_ENCODE_IMAGES_DTYPE"),
        ("ZRELAY_GENERATOR_ENDPOINT", "ZRELAY_GENERATOR"),
        ("ZRELAY_STATE_DIR", "ZRELAY_STATE"),
        ("ZRELAY_CONFG", "ZRELAY_CONFIG"),
        ("ZRELAY_X", ""),
        ("ZRELAY_GENERATE_", ""),
        ("ZRELAY_", ""),
    ],
)
def test_the_nearest_variable_is_found_word_by_word(name: str, nearest: str) -> None:
    hint = f"; did you mean {nearest!r}?" if nearest else ""
    assert config.unknown_variables({name: "1"}) == [f"{name} is not a variable of zrelay{hint}"]


@pytest.mark.parametrize("data", [HOME.encode("utf-8-sig"), HOME.replace("\n", "\r\n").encode("utf-8-sig")])
def test_a_byte_order_mark_and_line_ends_of_windows_are_read(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(data)
    assert config.load(file, {}).generate.width == 512


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_utf_16_is_refused_by_name_with_the_remedy(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "config.toml"
    mark = "\ufeff" if encoding.endswith("-be") else ""
    file.write_bytes((mark + HOME).encode(encoding))
    with pytest.raises(InvalidArgument, match=rf"config.toml: .* got {encoding[:6].upper()}.*: save the file as UTF-8"):
        config.load(file, {})


def test_bytes_that_are_not_utf_8_are_refused_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(b"[generate]\r\nwidth = 512\r\n# \xff\r\n")
    with pytest.raises(InvalidArgument, match=r"config.toml: expected UTF-8 text, got the byte 0xff in line 3"):
        config.load(file, {})


def test_a_configuration_that_cannot_be_read_names_the_variable(tmp_path: Path) -> None:
    folder = tmp_path / "config.toml"
    folder.mkdir()
    message = r"the configuration cannot be read .*; set ZRELAY_CONFIG to another file"
    with pytest.raises(OSError, match=message) as error:
        config.load(folder, {})
    assert error.value.filename == str(folder)


def test_a_profile_of_a_file_that_does_not_exist_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"no profile 'home' in .*none.toml; the file does not exist: `zrelay"):
        config.load(tmp_path / "none.toml", {}, profile="home")
