"""Rows that are set aside: they are counted and reported, and none is lost."""

import csv
import io
from pathlib import Path

import pytest

from components.errors import ConcordError
from components.ingest.quarantine import BadValueError, Quarantine, TableErrors


def errors_on(*lines: int, kind: str = "empty target") -> TableErrors:
    errors = TableErrors(Path("labels.csv"))
    for line in lines:
        errors.add(line, "reading", "x", BadValueError(kind, "fill it in"))
    return errors


def test_a_row_with_two_errors_counts_once() -> None:
    quarantine = Quarantine(0.2)
    quarantine.add(10, [errors_on(3, 3, 7)])
    assert (quarantine.read, quarantine.rows) == (10, 2)
    assert quarantine.rows_per_reason() == {"empty target": 2}
    quarantine.check_row_counts(8)


@pytest.mark.parametrize("kept", [7, 9])
def test_a_lost_or_duplicated_row_is_a_runtime_error(kept: int) -> None:
    quarantine = Quarantine(0.5)
    quarantine.add(10, [errors_on(3, 7)])
    with pytest.raises(RuntimeError, match=f"10 rows read, but {kept} kept and 2 quarantined"):
        quarantine.check_row_counts(kept)


@pytest.mark.parametrize(("limit", "stops"), [(0.0, True), (0.1, True), (0.2, False), (1.0, False)])
def test_the_limit_is_a_share_of_the_rows(limit: float, stops: bool) -> None:
    quarantine = Quarantine(limit)
    if not stops:
        quarantine.add(10, [errors_on(3, 7)])
        return
    with pytest.raises(ConcordError, match=r"labels\.csv: 2 errors"):
        quarantine.add(10, [errors_on(3, 7)])
    assert (quarantine.read, quarantine.rows) == (0, 0)


def test_values_are_unchanged_in_the_csv_up_to_200_characters() -> None:
    values = ["größe \n", 'a "b", c', "\x00\x1b[2J", "1+1", "-5", "+1.5e3", "x" * 10_000]
    errors = TableErrors(Path("labels.csv"))
    for line, value in enumerate(values, start=2):
        errors.add(line, "reading", value, BadValueError("target is not a number", "write one"))
    quarantine = Quarantine(1)
    quarantine.add(len(values), [errors])
    table = list(csv.DictReader(io.StringIO(quarantine.to_csv(), newline="")))
    assert [row["value"] for row in table[:-1]] == values[:-1]
    assert len(table[-1]["value"]) == 200


@pytest.mark.parametrize(
    "value", ['=HYPERLINK("http://evil.example","see")', "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1"]
)
def test_no_cell_of_the_csv_is_a_formula(value: str) -> None:
    errors = TableErrors(Path("labels.csv"), value)
    errors.add(2, value, value, BadValueError(value, value))
    quarantine = Quarantine(1)
    quarantine.add(1, [errors])
    (row,) = csv.DictReader(io.StringIO(quarantine.to_csv(), newline=""))
    assert {row[name] for name in ("source", "column", "value", "reason", "remedy")} == {f"'{value}"}


def test_the_csv_is_sorted_by_source_and_line() -> None:
    quarantine = Quarantine(1)
    for name, lines in (("b.csv", (4, 2)), ("a.csv", (9,))):
        errors = TableErrors(Path("data") / name)
        for line in lines:
            errors.add(line, None, None, BadValueError("2 values where the header has 3 columns", "give all"))
        quarantine.add(10, [errors])
    assert [line.split(",")[:2] for line in quarantine.to_csv().splitlines()[1:]] == [
        ["a.csv", "9"], ["b.csv", "2"], ["b.csv", "4"],
    ]  # fmt: skip
    assert quarantine.read == 20
