"""Text from outside: files that people write, and what must not reach a terminal or a log as it is."""

import codecs
import re

_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, delete, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # Bidi_Control
    "\u2028\u2029\ufff9-\ufffb"  # line and paragraph separators, interlinear annotation
    "\ud800-\udfff]"  # surrogates: no characters, and not encodable
)
_LINE_CONTROLS = re.compile(f"[\t\n]|{_CONTROLS.pattern}")


class NotText(ValueError):
    """A file is not UTF-8; the message names the file, what it is, and what to do."""


def decode(data: bytes, name: str) -> str:
    r"""Returns the text of a file without its byte order mark, and with \n at the end of each line.

    Windows ends lines with \r\n, and its editors write a byte order mark. Neither is part of what a person wrote.

    Args:
        data: The bytes of the file.
        name: The file, for messages.

    Raises:
        NotText: The bytes are not UTF-8.
    """
    for mark, encoding in _OTHER_MARKS:
        if data.startswith(mark):
            raise NotText(
                f"{name}: expected UTF-8 text, got {encoding}, which Windows PowerShell writes with `>`: save the file "
                "as UTF-8, for example with `Out-File -Encoding utf8`"
            )
    body = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        got = f"the byte 0x{body[error.start]:02x} in line {line}"
        raise NotText(f"{name}: expected UTF-8 text, got {got}: save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def printable(text: str) -> str:
    r"""Returns text that a terminal can show: characters that control it are replaced by escapes such as \x1b.

    These are control characters except tab and newline, characters that change the direction of text, separators of
    lines, and lone surrogates. Texts of servers, files and other users may contain any of them, to hide or forge what a
    person reads, or to make a terminal execute something.
    """
    return _CONTROLS.sub(_escape, text)


def one_line(text: str) -> str:
    r"""Returns text as `printable` does, on one line: tabs and newlines are replaced by \t and \n."""
    return _LINE_CONTROLS.sub(_escape, text)


def printable_json(text: str) -> str:
    """Returns JSON of the same value in which the characters that `printable` replaces are escaped."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _escape(found: "re.Match[str]") -> str:
    return found[0].encode("unicode_escape").decode()
