"""Rows that cannot be used, set aside: each with its line and the reason, counted, and up to a share of the input."""

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from components.errors import ConcordError
from components.settings import Settings
from components.shared.io.text import shown

FAULTS_TOLD = 10
NAME = "quarantine.csv"
_KEPT = 200  # characters of a value that the table keeps


class BadValueError(ValueError):
    """A value that cannot be used: its kind of fault (a short noun), and what to do about it."""

    def __init__(self, kind: str, remedy: str) -> None:
        """Both are shown to a person."""
        super().__init__(kind)
        self.kind, self.remedy = kind, remedy


@dataclass(frozen=True, slots=True)
class Fault:
    """One reason why a row cannot be used.

    Attributes:
        line: line of the table on which the row begins.
        column, value: None where the whole row is meant.
    """

    line: int
    column: str | None
    value: str | None
    kind: str
    remedy: str


class Faults:
    """Faults of one table, collected so that all are told at once: the first ten in full, the rest by kind."""

    def __init__(self, table: Path) -> None:
        """None so far."""
        self.table = table
        self.all: list[Fault] = []

    @property
    def count(self) -> int:
        """How many; a row may have several."""
        return len(self.all)

    @property
    def lines(self) -> set[int]:
        """The rows that have one."""
        return {fault.line for fault in self.all}

    def add(self, line: int, column: str | None, value: str | None, bad: BadValueError) -> None:
        """Takes a fault down; `column` and `value` are None where the whole record is meant."""
        kept = value if value is None or len(value) <= _KEPT else value[: _KEPT - 1] + "…"
        self.all.append(Fault(line, column, kept, bad.kind, bad.remedy))

    def tell(self, more: str = "") -> None:
        """Ends the step where a fault was found.

        Args:
            more: ends the first line.

        Raises:
            ConcordError: there is at least one.
        """
        if not self.all:
            return
        lines = [f"{self.table}: {self.count} {'fault' if self.count == 1 else 'faults'}{more}"]
        for fault in self.all[:FAULTS_TOLD]:
            place = f"{self.table.name}:{fault.line}" + (f": {fault.column}" if fault.column else "")
            found = f" {shown(fault.value)}" if fault.value is not None else ""
            lines.append(f"  {place}: {fault.kind}{found}; {fault.remedy}")
        if untold := Counter(fault.kind for fault in self.all[FAULTS_TOLD:]):
            kinds = ", ".join(f"{kind}: {count}" for kind, count in untold.most_common())
            lines.append(f"  and {untold.total()} more ({kinds})")
        raise ConcordError("\n".join(lines))


class Quarantine:
    """Where faulty rows go in place of ending the step, as long as their share stays within `ingest.max_quarantined`.

    Attributes:
        open: whether any row may be set aside. If none may, every fault ends the step.
        low, high: the task's range; with an open quarantine a target beyond it is set aside too.
        read: rows read, set aside or not.
        rows: rows set aside.
    """

    def __init__(self, limit: float = 0, low: float = -math.inf, high: float = math.inf) -> None:
        """Empty.

        Args:
            limit: share of rows that it takes.
        """
        self._limit, self.low, self.high = limit, low, high
        self.open = limit > 0
        self.read = self.rows = 0
        self._faults: list[tuple[str, Fault]] = []

    @classmethod
    def of(cls, settings: Settings) -> "Quarantine":
        """As the settings have it."""
        return cls(settings.ingest.max_quarantined, settings.task.low, settings.task.high)

    def settle(self, read: int, tables: Sequence[Faults]) -> None:
        """Takes in what was found in a source of `read` rows, in one table or in several.

        Raises:
            ConcordError: more rows are faulty than may be set aside; the faults of the first such table are told.
        """
        bad = sum(len(faults.lines) for faults in tables)
        if bad > self._limit * read:
            allowed = f"; ingest.max_quarantined allows {self._limit:.2%}" if self.open else ""
            for faults in tables:
                faults.tell(f" ({bad} of {read} rows, {bad / read:.2%}{allowed})" if self.open else "")
        self.read += read
        self.rows += bad
        self._faults += [(faults.table.name, fault) for faults in tables for fault in faults.all]

    def table(self) -> str:
        """CSV: a line a fault, in the order of the source; a row with two faults has two lines."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["source", "line", "column", "value", "reason", "remedy"])
        for source, fault in sorted(self._faults, key=lambda pair: (pair[0], pair[1].line)):
            writer.writerow([source, fault.line, fault.column or "", fault.value or "", fault.kind, fault.remedy])
        return out.getvalue()

    def reasons(self) -> dict[str, int]:
        """Kind of fault -> rows that have it."""
        found = {(source, fault.line, fault.kind) for source, fault in self._faults}
        return dict(sorted(Counter(kind for _, _, kind in found).items()))

    def account(self, kept: int) -> None:
        """Nothing was dropped without a word.

        Args:
            kept: rows that went on.

        Raises:
            RuntimeError: rows are missing or came twice, which is a defect of ours.
        """
        if self.read != kept + self.rows:
            raise RuntimeError(f"{self.read} rows read, but {kept} kept and {self.rows} quarantined")
