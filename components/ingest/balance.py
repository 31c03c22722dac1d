"""Measures how far a split by subject is from the balanced rule, which whole subjects can only approximate."""

from collections.abc import Sequence

from components.shared.rows.histogram import LabelBin


def balance(histogram: Sequence[LabelBin], max_per_label: int) -> dict[str, dict[str, int]]:
    """How far val and test are from the balanced rule, in rows.

    Returns:
        Split -> `wanted`: rows that the rule asks for; `met`: how many of these the split has; `over`: rows beyond what
        the rule asks for of their label.
    """
    rows = {}
    for split in ("val", "test"):
        wanted = [min(sum(bin.rows.values()) // 3, max_per_label) for bin in histogram]
        actual = [bin.rows[split] for bin in histogram]
        met = sum(min(pair) for pair in zip(wanted, actual, strict=True))
        rows[split] = {"wanted": sum(wanted), "met": met, "over": sum(actual) - met}
    return rows
