"""Refuses files that should be plain UTF-8 text and are something else, with the command that converts them."""

from pathlib import Path

from components.errors import ConcordError

_WORKBOOK = 'a workbook. Open it in a spreadsheet, save it as "CSV UTF-8"'
_UTF_16 = "UTF-16 text. Convert it: iconv -f {encoding} -t UTF-8 {name} > new-{name}"
# First bytes -> what the file is, and what to do.
_KINDS = (
    (b"\x1f\x8b", "compressed by gzip. Unpack it: gzip -dc {name} > new-{name}"),
    (b"BZh", "compressed by bzip2. Unpack it: bzip2 -dc {name} > new-{name}"),
    (b"\xfd7zXZ\x00", "compressed by xz. Unpack it: xz --format=auto -dc < {name} > new-{name}"),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard. Unpack it: zstd -dc < {name} > new-{name}"),
    (b"PK\x03\x04", f"{_WORKBOOK}, or unpack it if it is a zip archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _WORKBOOK),
    (b"PAR1", "a Parquet file. Rename it so that its name ends in .parquet"),
    (b"\xff\xfe\x00\x00", "UTF-32 text. Convert it: iconv -f UTF-32 -t UTF-8 {name} > new-{name}"),
    (b"\xff\xfe", _UTF_16.replace("{encoding}", "UTF-16")),
    (b"\xfe\xff", _UTF_16.replace("{encoding}", "UTF-16")),
)


def check_plain_text(file: Path) -> None:
    """Looks at a file's first bytes.

    Raises:
        ConcordError: it is compressed, a workbook, a Parquet file, or text in UTF-16 or UTF-32.
    """
    try:
        with open(file, "rb") as opened:
            start = opened.read(1024)
    except OSError:  # reported by the reader
        return
    what = next((what for magic, what in _KINDS if start.startswith(magic)), None)
    if what is None and b"\0" in start:  # UTF-16 without a mark has a zero byte in every Latin letter
        even = start[::2].count(0) > start[1::2].count(0)
        what = _UTF_16.replace("{encoding}", "UTF-16BE" if even else "UTF-16LE")
    if what is not None:
        raise ConcordError(f"{file}: not plain text but {what.replace('{name}', file.name)}, and name the new file.")
