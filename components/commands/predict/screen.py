"""Shows the first results as a table in the terminal, and a summary of all."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.commands.predict.results import Result
from components.shared.io.text import printable
from components.shared.scoring.answers import decimals

if TYPE_CHECKING:
    from components.shared.model.number_reader import NumberReader

SHOWN, SHOWN_WITH_FILE = 40, 10  # rows of the table


class Screen:
    """Counts the results, and holds those that are shown.

    Attributes:
        unreadable: images that could not be read.
    """

    def __init__(self, model: str, reader: "NumberReader", out: Path | None) -> None:
        """Starts the clock of the summary.

        Args:
            model: its name.
            reader: its task has the unit and the decimals.
            out: the file that has all results, if any.
        """
        self._model, self._out, self._unit = model, out, reader.task.unit
        is_mean = reader.rule is not None and reader.rule.statistic == "mean"
        self._decimals = decimals(reader.task.resolution) + is_mean
        self._rows: list[Result] = []
        self._limit = SHOWN if out is None else SHOWN_WITH_FILE
        self._start = time.monotonic()
        self._count = self._flagged = self.unreadable = 0

    def add(self, result: Result) -> None:
        """Counts a result."""
        self._count += 1
        self._flagged += result.flag is not None
        self.unreadable += result.error is not None
        if len(self._rows) < self._limit:
            self._rows.append(result)

    def show(self) -> None:
        """Prints the table and the summary."""
        seconds = time.monotonic() - self._start
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=140)
        console.print(self._table())
        if more := self._count - len(self._rows):
            where = f"all rows are in {self._out}" if self._out else "--out FILE writes all rows to a file"
            console.print(Text(f"and {more:,} more; {where}", style="dim"), soft_wrap=True)
        counts = [f"{self._count - self.unreadable:,} read", f"{self._flagged:,} flagged"]
        counts.append(f"{self.unreadable:,} unreadable")
        speed = f"{seconds:.1f} s, {self._count / max(seconds, 1e-9):,.1f} images/s"
        console.print(Text(f"{self._model}: {', '.join(counts)}; {speed}"), soft_wrap=True)
        if self._out:
            console.print(Text(f"written: {self._out}"), soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False)
        is_ranked = any(result.rank is not None for result in self._rows)
        columns = (*(("rank",) if is_ranked else ()), "image", "value", "low", "high", "mass", "flag", "error")
        for column in columns:
            is_text = column in ("image", "flag", "error")
            unit = f"\n{self._unit}" if column == "value" and self._unit else ""
            table.add_column(
                f"{column}{unit}", justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text
            )
        for result in self._rows:
            table.add_row(*(self._cell(column, getattr(result, column)) for column in columns))
        return table

    def _cell(self, column: str, value: str | float | None) -> Text:
        if value is None:
            return Text("")
        if isinstance(value, str):
            return Text(printable(value), style={"error": "red", "flag": "yellow"}.get(column, ""))
        if column == "rank":
            return Text(f"{value:.0f}")
        return Text(f"{value:.3f}" if column == "mass" else f"{value:.{self._decimals}f}")
