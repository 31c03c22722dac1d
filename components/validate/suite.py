"""Runs expectations with Great Expectations in memory and writes its Data Docs."""

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.shared.io.atomic import new_folder
from components.validate.checks import Check

MAX_EXAMPLES = 3
# Columns that identify a row in reports; each table has some of them.
_IDENTIFYING_COLUMNS = ("split", "id", "origin", "fault", "target", "shard", "field", "expected", "found")


@dataclass(frozen=True)
class Outcome:
    """The result of one check.

    Attributes:
        check: the check.
        success: whether it is met.
        observed: number of rows and of rows that do not meet it, or the figure itself.
        rows: the first rows that do not meet it, each as column -> value.
    """

    check: Check
    success: bool
    observed: dict[str, Any]
    rows: list[dict[str, Any]]


def import_great_expectations() -> None:
    """Imports Great Expectations, which takes 7 s."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import; disables telemetry
    import great_expectations.expectations  # noqa: F401


class Suite:
    """Runs checks in an ephemeral data context, which leaves nothing but the Data Docs."""

    def __init__(self) -> None:
        """Creates the context; no check has run."""
        import_great_expectations()
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        self._context = gx.get_context(mode="ephemeral")
        self._context.variables.progress_bars = ProgressBarsConfig(globally=False)
        self._source = self._context.data_sources.add_pandas("splits")

    def run(self, name: str, table: pd.DataFrame, checks: Sequence[Check]) -> list[Outcome]:
        """Runs the checks on a table and returns their outcomes in order.

        Raises:
            RuntimeError: an expectation could not be computed, which is a bug in a check.
        """
        import great_expectations as gx
        import great_expectations.expectations as gxe

        suite = self._context.suites.add(gx.ExpectationSuite(name))
        for check in checks:
            kind = getattr(gxe, check.expectation)
            severity = "critical" if check.severity == "error" else "warning"
            meta = {"check": check.name}
            suite.add_expectation(kind(**check.arguments, notes=check.description, meta=meta, severity=severity))
        batch = self._source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
        definition = gx.ValidationDefinition(name=name, data=batch, suite=suite)
        result = self._context.validation_definitions.add(definition).run(
            batch_parameters={"dataframe": _escaped(table)},
            result_format={
                "result_format": "SUMMARY",
                "unexpected_index_column_names": [column for column in _IDENTIFYING_COLUMNS if column in table],
                "partial_unexpected_count": MAX_EXAMPLES,
            },
        )
        items: list[Any] = list(result.results)
        by_name = {item.expectation_config.meta["check"]: item for item in items}
        return [_outcome(check, by_name[check.name]) for check in checks]

    def write_docs(self, folder: Path) -> Path:
        """Writes the Data Docs of all runs so far, replacing the folder, and returns the path of the start page."""
        with new_folder(folder) as new:
            store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": os.fspath(new.resolve())}
            index = {"class_name": "DefaultSiteIndexBuilder"}
            site: Any = {"class_name": "SiteBuilder", "site_index_builder": index, "store_backend": store}
            self._context.add_data_docs_site(site_name="docs", site_config=site)
            self._context.build_data_docs(site_names=["docs"])
        return folder / "index.html"


def _outcome(check: Check, item: Any) -> Outcome:
    if item.exception_info and item.exception_info.get("raised_exception", True):
        raise RuntimeError(f"{check.name}: Great Expectations could not compute it: {item.exception_info}")
    result = item.result
    if "element_count" in result:
        observed = {"rows": result["element_count"], "unexpected": result["unexpected_count"]}
    else:
        observed = {"value": result["observed_value"]}
    observed = {
        name: np.asarray(value).item() for name, value in observed.items()
    }  # NumPy scalars to Python's, for JSON
    rows = result.get("partial_unexpected_index_list") or []
    return Outcome(check, bool(item.success), observed, [_unescaped(row) for row in rows])


def _escaped(table: pd.DataFrame) -> pd.DataFrame:
    """The table with all texts escaped for HTML: the Data Docs show ids and others as they are, markup included."""
    texts = table.select_dtypes(["object", "string"])
    escaped = {
        name: pd.Series(
            [html.escape(value) if isinstance(value, str) else value for value in texts[name]], table.index, object
        )
        for name in texts
    }
    return table.assign(**escaped)


def _unescaped(row: dict[str, Any]) -> dict[str, Any]:
    return {name: html.unescape(value) if isinstance(value, str) else value for name, value in row.items()}
