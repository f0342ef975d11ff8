"""The text files of other people: UTF-8, or what a byte order mark at their beginning names.

Nothing is guessed and nothing repaired: bytes that are no text in that encoding are refused, with
a DataError whose text completes the sentence "this file ...".
"""

import codecs
import io
import re
from collections.abc import Iterator
from typing import BinaryIO, cast

from opensana.errors import DataError

# UTF-32 first: its little-endian mark begins with that of UTF-16.
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
"""With a NUL in so many bytes a text is UTF-16 or UTF-32, whatever else it may be."""


def encoding_of(start: bytes) -> tuple[str, int]:
    """The encoding of a text that begins so, and the bytes of its mark: UTF-8 and 0 without one."""
    found = ((name, len(mark)) for mark, name in MARKS if start.startswith(mark))
    return next(found, ("utf-8", 0))


def decode_text(content: bytes) -> str:
    """The text without its mark; DataError for bytes that are none."""
    encoding, mark = encoding_of(content[:LONGEST_MARK])
    if encoding == "utf-8" and content.count(0) * NULS > len(content):
        raise DataError("looks like UTF-16 or UTF-32 without its mark; save it as UTF-8")
    try:
        return content[mark:].decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(_not(encoding, mark + error.start)) from None


def text_lines(file: BinaryIO, *, most: int) -> Iterator[tuple[str, str]]:
    r"""The lines of a file with their ends (\n, \r\n or \r), and what is wrong with each, or "".

    Where UTF-8 is broken the bytes are surrogate escapes and the next line is good again; in other
    encodings nothing is sure from there on: DataError, as for a line of more than `most` characters
    and for a text that lacks its mark. The file is closed in the end.
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


def _not(encoding: str, place: int) -> str:
    if encoding == "utf-8":
        return f"is not UTF-8 text (byte {place + 1}), and no mark names another encoding"
    return f"is not {encoding.upper()} text (byte {place + 1}), which its mark names"
