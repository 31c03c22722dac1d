"""Rows that are set aside: counted, told, never lost."""

import csv
import io
from pathlib import Path

import pytest

from components.errors import ConcordError
from components.ingest.quarantine import BadValueError, Faults, Quarantine


def faults(*lines: int, kind: str = "empty target") -> Faults:
    found = Faults(Path("labels.csv"))
    for line in lines:
        found.add(line, "reading", "x", BadValueError(kind, "fill it in"))
    return found


def test_a_row_with_two_faults_counts_once() -> None:
    quarantine = Quarantine(0.2)
    quarantine.settle(10, [faults(3, 3, 7)])
    assert (quarantine.read, quarantine.rows) == (10, 2)
    assert quarantine.reasons() == {"empty target": 2}
    quarantine.account(8)


@pytest.mark.parametrize("kept", [7, 9])
def test_a_row_that_is_lost_or_comes_twice_is_a_defect(kept: int) -> None:
    quarantine = Quarantine(0.5)
    quarantine.settle(10, [faults(3, 7)])
    with pytest.raises(RuntimeError, match=f"10 rows read, but {kept} kept and 2 quarantined"):
        quarantine.account(kept)


@pytest.mark.parametrize(("limit", "stops"), [(0.0, True), (0.1, True), (0.2, False), (1.0, False)])
def test_the_limit_is_a_share_of_the_rows(limit: float, stops: bool) -> None:
    quarantine = Quarantine(limit)
    if not stops:
        quarantine.settle(10, [faults(3, 7)])
        return
    with pytest.raises(ConcordError, match=r"labels\.csv: 2 faults"):
        quarantine.settle(10, [faults(3, 7)])
    assert (quarantine.read, quarantine.rows) == (0, 0)


def test_values_come_back_from_the_table_as_they_were() -> None:
    values = ["größe \n", 'a "b", c', "\x00\x1b[2J", "=1+1", "x" * 10_000]
    found = Faults(Path("labels.csv"))
    for line, value in enumerate(values, start=2):
        found.add(line, "reading", value, BadValueError("target is no number", "write one"))
    quarantine = Quarantine(1)
    quarantine.settle(len(values), [found])
    table = list(csv.DictReader(io.StringIO(quarantine.table(), newline="")))
    assert [row["value"] for row in table[:-1]] == values[:-1]
    assert len(table[-1]["value"]) == 200


def test_several_tables_stand_in_order() -> None:
    quarantine = Quarantine(1)
    for name, lines in (("b.csv", (4, 2)), ("a.csv", (9,))):
        found = Faults(Path("data") / name)
        for line in lines:
            found.add(line, None, None, BadValueError("2 values where the header has 3 columns", "give all"))
        quarantine.settle(10, [found])
    assert [line.split(",")[:2] for line in quarantine.table().splitlines()[1:]] == [
        ["a.csv", "9"], ["b.csv", "2"], ["b.csv", "4"],
    ]  # fmt: skip
    assert quarantine.read == 20
