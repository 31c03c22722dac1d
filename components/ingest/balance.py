"""How far the splits are from the balanced rule, where whole subjects leave it no choice."""

from collections.abc import Sequence

from components.shared.rows.histogram import LabelBin


def balance(histogram: Sequence[LabelBin], max_per_label: int) -> dict[str, dict[str, int]]:
    """How far val and test are from the balanced rule, in rows.

    Returns:
        Split -> `wanted` by the rule, `met` of these, and `over`: rows of labels that have enough already.
    """
    found = {}
    for split in ("val", "test"):
        wanted = [min(sum(bin.rows.values()) // 3, max_per_label) for bin in histogram]
        got = [bin.rows[split] for bin in histogram]
        met = sum(min(pair) for pair in zip(wanted, got, strict=True))
        found[split] = {"wanted": sum(wanted), "met": met, "over": sum(got) - met}
    return found
