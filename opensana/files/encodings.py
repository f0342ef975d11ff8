"""Text files from users: UTF-8, or the encoding that a byte order mark (BOM) names.

Nothing is guessed or repaired: invalid bytes are a DataError, whose message completes the sentence
"this file ...".
"""

import codecs
import io
import re
from collections.abc import Iterator
from typing import BinaryIO, cast

from opensana.errors import DataError

# UTF-32 first: its little-endian mark starts with the mark of UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
LONGEST_MARK = 4
SURROGATE = re.compile("[\ud800-\udfff]")
NULS = 4
"""A text with more than one NUL in this many bytes must be UTF-16 or UTF-32."""


def encoding_of(start: bytes) -> tuple[str, int]:
    """The encoding of a text that starts like this, and the length of its mark (0 if none)."""
    found = ((name, len(mark)) for mark, name in MARKS if start.startswith(mark))
    return next(found, ("utf-8", 0))


def decode_text(content: bytes) -> str:
    """The text without its mark; DataError if the bytes are invalid."""
    encoding, mark = encoding_of(content[:LONGEST_MARK])
    if encoding == "utf-8" and content.count(0) * NULS > len(content):
        raise DataError("looks like UTF-16 or UTF-32 without its mark; save it as UTF-8")
    try:
        return content[mark:].decode(encoding)
    except UnicodeDecodeError as error:
        byte = mark + error.start + 1
        if encoding == "utf-8":
            fault = f"is not UTF-8 text (byte {byte}), and no mark names another encoding"
        else:
            fault = f"is not {encoding.upper()} text (byte {byte}), which its mark names"
        raise DataError(fault) from None


def text_lines(file: BinaryIO, *, most: int) -> Iterator[tuple[str, str]]:
    r"""Each line of a file with its end (\n, \r\n or \r), and what is wrong with it, or "".

    Invalid UTF-8 becomes surrogate escapes and affects its own line only. In other encodings it is
    a DataError, as are a line of more than `most` characters and a UTF-16 or UTF-32 text without a
    mark. Closes the file.
    """
    encoding, mark = encoding_of(file.read(LONGEST_MARK))
    file.seek(mark)
    errors = "surrogateescape" if encoding == "utf-8" else "strict"
    text = io.TextIOWrapper(cast(io.BufferedReader, file), encoding, errors, newline="")
    number = 0
    try:
        while line := text.readline(most + 1):
            number += 1
            if len(line) > most:
                raise DataError(f"line {number} has more than {most:,} characters")
            if line.count("\0") * NULS > len(line):
                raise DataError("looks like UTF-16 or UTF-32 without its mark; save it as UTF-8")
            yield line, "is not UTF-8" if SURROGATE.search(line) else ""
    except UnicodeDecodeError:
        raise DataError(f"is not {encoding.upper()} after line {number}") from None
    finally:
        text.close()
