"""Text files that people write: UTF-8 with or without a byte order mark, with the line ends of any platform."""

import codecs

_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


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
