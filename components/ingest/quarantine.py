"""Collects the errors of input rows, and sets bad rows aside as long as their share stays within a limit."""

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from components.errors import ConcordError
from components.settings import Settings
from components.shared.io.text import cell, quoted

ERRORS_SHOWN = 10
QUARANTINE_FILE = "quarantine.csv"
_MAX_VALUE = 200  # characters of a value that quarantine.csv keeps


class BadValueError(ValueError):
    """A value that cannot be used, with the kind of error (a short noun phrase) and its remedy."""

    def __init__(self, kind: str, remedy: str) -> None:
        """Both texts appear in error messages and in quarantine.csv."""
        super().__init__(kind)
        self.kind, self.remedy = kind, remedy


@dataclass(frozen=True, slots=True)
class RowError:
    """One reason why a row cannot be used.

    Attributes:
        line: line of the table on which the row begins.
        column, value: None if the error concerns the whole row.
        kind: kind of error, a short noun phrase.
        remedy: what to do about it.
    """

    line: int
    column: str | None
    value: str | None
    kind: str
    remedy: str


class TableErrors:
    """All errors of one table, to be reported together: the first ten in full, the rest as counts by kind."""

    def __init__(self, table: Path, name: str | None = None) -> None:
        """Starts without errors. `name` is what the table is called beside a line; None: the file's name."""
        self.table, self.name = table, name or table.name
        self.errors: list[RowError] = []

    @property
    def count(self) -> int:
        """Number of errors; a row may have several."""
        return len(self.errors)

    @property
    def lines(self) -> set[int]:
        """Line numbers of the rows with errors."""
        return {error.line for error in self.errors}

    def add(self, line: int, column: str | None, value: str | None, bad: BadValueError) -> None:
        """Records an error; `column` and `value` are None if it concerns the whole row."""
        short = value if value is None or len(value) <= _MAX_VALUE else value[: _MAX_VALUE - 1] + "…"
        self.errors.append(RowError(line, column, short, bad.kind, bad.remedy))

    def raise_if_any(self, summary: str = "") -> None:
        """Raises an error that reports all recorded errors, if there are any.

        Args:
            summary: appended to the first line of the message.

        Raises:
            ConcordError: at least one error is recorded.
        """
        if not self.errors:
            return
        lines = [f"{self.table}: {self.count} {'error' if self.count == 1 else 'errors'}{summary}"]
        for error in self.errors[:ERRORS_SHOWN]:
            location = f"{self.name}:{error.line}" + (f": {error.column}" if error.column else "")
            value = f" {quoted(error.value)}" if error.value is not None else ""
            lines.append(f"  {location}: {error.kind}{value}; {error.remedy}")
        if rest := Counter(error.kind for error in self.errors[ERRORS_SHOWN:]):
            kinds = ", ".join(f"{kind}: {count}" for kind, count in rest.most_common())
            lines.append(f"  and {rest.total()} more ({kinds})")
        raise ConcordError("\n".join(lines))


class Quarantine:
    """Sets rows with errors aside, as long as their share stays within `ingest.max_quarantined`.

    Attributes:
        enabled: whether any row may be set aside; if not, every error ends the step.
        low, high: the task's range; an enabled quarantine also takes rows whose target is outside.
        grey_bits: the task's; an enabled quarantine also takes rows whose grey image has more.
        read: number of rows read, including those set aside.
        rows: number of rows set aside.
    """

    def __init__(
        self, limit: float = 0, low: float = -math.inf, high: float = math.inf, grey_bits: int | None = None
    ) -> None:
        """Starts empty.

        Args:
            limit: largest share of rows that may be set aside.
            low, high: the task's range.
            grey_bits: the task's.
        """
        self._limit, self.low, self.high, self.grey_bits = limit, low, high, grey_bits
        self.enabled = limit > 0
        self.read = self.rows = 0
        self._errors: list[tuple[str, RowError]] = []

    @classmethod
    def from_settings(cls, settings: Settings) -> "Quarantine":
        """A quarantine with the limit, and what the task says of its rows, from the settings."""
        task = settings.task
        return cls(settings.ingest.max_quarantined, task.low, task.high, task.grey_bits)

    def add(self, read: int, tables: Sequence[TableErrors]) -> None:
        """Sets aside the rows with errors of a source of `read` rows.

        Raises:
            ConcordError: there are more such rows than the limit allows; reports the first table with errors.
        """
        bad = sum(len(table.lines) for table in tables)
        if bad > self._limit * read:
            allowed = f"; ingest.max_quarantined allows {self._limit:.2%}" if self.enabled else ""
            for table in tables:
                table.raise_if_any(f" ({bad} of {read} rows, {bad / read:.2%}{allowed})" if self.enabled else "")
        self.read += read
        self.rows += bad
        self._errors += [(table.name, error) for table in tables for error in table.errors]

    def to_csv(self) -> str:
        """The content of quarantine.csv: one line per error, sorted by source and line."""
        out = io.StringIO()
        writer = csv.writer(out)  # ends lines with \r\n, without which it would not quote a value with \r
        writer.writerow(["source", "line", "column", "value", "reason", "remedy"])
        for source, error in sorted(self._errors, key=lambda pair: (pair[0], pair[1].line)):
            texts = [source, error.column or "", error.value or "", error.kind, error.remedy]
            source, *others = map(cell, texts)
            writer.writerow([source, error.line, *others])
        return out.getvalue()

    def rows_per_reason(self) -> dict[str, int]:
        """Kind of error -> number of rows that have it."""
        reasons = {(source, error.line, error.kind) for source, error in self._errors}
        return dict(sorted(Counter(kind for _, _, kind in reasons).items()))

    def check_row_counts(self, kept: int) -> None:
        """Asserts that rows read == rows kept + rows quarantined.

        Args:
            kept: number of rows written to the shards.

        Raises:
            RuntimeError: rows are missing or were written twice, which is a bug in a source.
        """
        if self.read != kept + self.rows:
            raise RuntimeError(f"{self.read} rows read, but {kept} kept and {self.rows} quarantined")
