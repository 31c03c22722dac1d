"""Parses the targets of tables: plain decimal numbers. Other spellings are errors that say what to write instead."""

import math
import re
import unicodedata

from components.ingest.quarantine import BadValueError

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
_GROUPED = re.compile(  # 1,234 1.234.567 1 234,5 1'234.5
    r"(?P<whole>[+-]?[1-9]\d{0,2}(?P<mark>[,.' ])\d{3}(?:(?P=mark)\d{3})*)(?:(?!(?P=mark))[.,](?P<part>\d+))?", re.ASCII
)
_WITH_UNIT = re.compile(r"(?P<before>[$€£¥]?)\s*(?P<number>[+-]?\d[\d.,' ]*?)\s*(?P<after>(?:[^\W\d]|[%°/$€£¥])*\.?)")
# A minus sign, a dash, Arabic decimal and thousands marks, an apostrophe, a thin space.
_SIGNS = str.maketrans("\u2212\u2013\u066b\u066c\u2019\u2009", "--.,' ")
_NOT_FINITE = ("nan", "na", "inf", "infinity", "null", "none")


def parse_target(text: str) -> float:
    """Parses a finite decimal number with a decimal point; spaces around it are allowed.

    Raises:
        BadValueError: anything else: empty, text, NaN, infinite, a comma, a unit, digits of another script.
    """
    value = text.strip()
    if not value:
        raise BadValueError("empty target", "fill in the number or remove the row")
    if not _NUMBER.fullmatch(value):
        raise _misspelt(value)
    number = float(value)
    if not math.isfinite(number):
        raise BadValueError("target not finite", "it is too large for a double; correct it")
    return number


def _misspelt(value: str) -> BadValueError:
    """What is wrong with a text that is no plain number; the remedy names the plain number if there is one."""
    if value.lower().lstrip("+-") in _NOT_FINITE:
        return BadValueError("target not finite", "fill in the number or remove the row")
    ascii = _in_ascii(value)
    if _NUMBER.fullmatch(ascii):
        return BadValueError("digits or signs of another script", f"write {ascii}")
    if _DECIMAL_COMMA.fullmatch(ascii) and not _GROUPED.fullmatch(ascii):
        return BadValueError("decimal comma", f"write {ascii.replace(',', '.')}, with a point")
    if grouped := _GROUPED.fullmatch(ascii):
        plain = grouped["whole"].replace(grouped["mark"], "")
        if grouped["mark"] == "," and grouped["part"] is None and ascii.count(",") == 1:
            decimal = ascii.replace(",", ".")
            remedy = f"write {plain} if the comma groups thousands, or {decimal} if it is a decimal comma"
            return BadValueError("comma in a number", remedy)
        point = "" if grouped["part"] is None else f".{grouped['part']}"
        return BadValueError("thousands separator", f"write {plain}{point}")
    if (found := _WITH_UNIT.fullmatch(ascii)) and (found["before"] or found["after"]):
        number = found["number"]
        bare = number if _NUMBER.fullmatch(number) else "the number alone, such as 12.5"
        unit = " and ".join(part for part in (found["before"], found["after"]) if part)
        return BadValueError("target with a unit", f"write {bare}, without {unit}")
    return BadValueError("target is not a number", "write a plain number such as 12.5, without a unit")


def _in_ascii(value: str) -> str:
    """The text with digits, points, signs and spaces of other scripts in ASCII: full-width, Arabic, a true minus."""
    plain = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in value)
    plain = "".join(unicodedata.normalize("NFKC", c) if not c.isalpha() else c for c in plain)
    return plain.translate(_SIGNS)
