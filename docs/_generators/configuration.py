"""Writes docs/reference/configuration.md from the settings: `python docs/_generators/configuration.py`."""

from pathlib import Path

from zrelay_shared.config import SECTIONS, settings_of
from zrelay_shared.requests import REQUEST_CONFIGS
from zrelay_shared.service.settings import Setting

PAGE = Path(__file__).parents[1] / "reference/configuration.md"
_START = """\
# Configuration

<!-- Written by docs/_generators/configuration.py from the definitions of the settings; do not edit. -->

Every setting can be given as a flag, as an environment variable, or in the configuration file. A flag takes precedence
over a variable, a variable over the file, the file over the default. `zrelay config` prints every effective value and
where it comes from; `zrelay config init` writes a commented file; `zrelay config check` reports unknown keys and
variables.

A setting that may be none takes the word `none`, for example `--threads none`, `ZRELAY_VISION_SIGLIP=none` or
`cache = "none"`. It resets what a source of lower precedence sets: `cache`, `state` and `reference_stats` to no folder,
every other setting to its default. A file or folder of that name is written `./none`. Options of requests take the
word, too; where `none` is one of the choices, the choice is meant.

The file is `$ZRELAY_CONFIG`, else `zrelay/config.toml` in `$XDG_CONFIG_HOME` or `~/.config`. Where
there is no home folder (HOME is not set for an unknown user id, is `/`, does not exist or may not be entered), it is
`/etc/zrelay/config.toml`, and the state folder is `/var/lib/zrelay`. The file is UTF-8. It holds profiles:

    default_profile = "home"

    [profile.home.encoder]
    endpoint = "macbook.local:7501"     # read by clients

    [profile.home.generator]
    model = "/models/Z-Image-Turbo"     # read by `zrelay serve generator`
    max_side = 2048

    [generate]
    format = "png"

The profile in use is the one of `--profile`, else of `ZRELAY_PROFILE`, else `default_profile`, else the profile named
`default`. The services that `zrelay up` starts read their settings in the same way, but `up` sets the model, address,
state folder, log level and grace period itself. A profile may also be one that `zrelay join` wrote. An endpoint that
nothing sets is that of the services of `zrelay up`, else of the joined boxes of the profile in use; a profile that a
flag or variable chooses takes precedence over `zrelay up`.

Three variables have no key: `ZRELAY_PROFILE`, `ZRELAY_CONFIG` (the file), and `ZRELAY_STATE` (the state folder, by
default `$STATE_DIRECTORY`, else `zrelay` in `$XDG_STATE_HOME` or `~/.local/state`).
"""
_SECTIONS = {
    "encoder": ("Encoder", "Table `[profile.NAME.encoder]`. Flags are those of `zrelay serve encoder`."),
    "vision": ("Vision service", "Table `[profile.NAME.vision]`. Flags are those of `zrelay serve vision`."),
    "generator": ("Generator", "Table `[profile.NAME.generator]`. Flags are those of `zrelay serve generator`."),
    "connection": (
        "Connections of clients",
        "Table `[profile.NAME.connection]`. Flags are those of all commands that call services. The files are used\n"
        "for every endpoint but those of this machine and of joined boxes named as such; `tls:HOST:PORT` uses\n"
        "them on this machine, too. Machines that `zrelay join` has paired need none: see [Files](files.md).",
    ),
    "generate": (
        "Generating images",
        "Table `[generate]`, outside of any profile. Flags are those of `zrelay generate`; `--deterministic` sets\n"
        "`encode.deterministic`, too. In Python they are the fields of `GenerateOptions`.",
    ),
    "encode": (
        "Encoding prompts",
        "Table `[encode]`, outside of any profile. Flags are those of `zrelay encode` and `zrelay generate`. In\n"
        "Python they are the fields of `EncodeOptions`.",
    ),
    "encode_images": (
        "Encoding images",
        "Table `[encode_images]`, outside of any profile. Flags are those of `zrelay vision encode`. In Python they\n"
        "are the fields of `EncodeImagesOptions`.",
    ),
    "condition": (
        "Conditioning prompts",
        "Table `[condition]`, outside of any profile. Flags are those of `zrelay generate --reference` and\n"
        "`zrelay vision condition`. In Python they are the fields of `ConditionOptions`.",
    ),
}


def page() -> str:
    """Returns the text of the page."""
    parts = [_START]
    for section in SECTIONS:
        title, text = _SECTIONS[section]
        parts.append(f"\n## {title}\n\n{text}\n")
        group = ""
        for one in settings_of(section):
            if one.group != group and (section not in REQUEST_CONFIGS or section == "generate"):
                parts.append(f"\n### {title}: {one.group}\n")
            if one.group != group:
                parts.append("\n| key | flag and variable | default | meaning |\n|---|---|---|---|\n")
            group = one.group
            parts.append(f"| {' | '.join(_cells(one, section))} |\n")
    return "".join(parts)


def _cells(one: Setting, section: str) -> list[str]:
    flags = ", ".join(f"`{flag}`" for flag in one.flags)
    if one.key == "endpoint":
        flags = f"`--{section}` of client commands"
    default = "required" if one.required else one.default_text or "none"
    return [f"`{one.key}`", f"{flags}<br>`{one.variable}`", default, one.description.replace("|", "\\|")]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
