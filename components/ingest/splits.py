"""Splits rows into train, val and test: by the balanced rule, or by subject.

The balanced rule is that of Yang et al. (2021), "Delving into Deep Imbalanced Regression": shuffle the rows of each
label; min(count // 3, limit) of them go to val, as many to test, and the rest to train. Here rows are shuffled by the
SHA-256 of their ids, so that a split is the same on every platform, in every version and for any order of the rows.

The split by subject comes as close to this rule as possible while it keeps all rows of a subject (a person or a device)
in one split.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence


def shuffle_key(id: str, purpose: str) -> bytes:
    """A sort key that shuffles ids: 32 bytes, uniformly distributed, independent for each purpose."""
    return hashlib.sha256(f"{purpose}\0{id}".encode()).digest()


def balanced_splits(ids: Sequence[str], bins: Iterable[int], max_per_label: int) -> list[str]:
    """Assigns each row to a split by the balanced rule.

    Args:
        ids: `(N,)` unique.
        bins: `(N,)` label bin of each row.
        max_per_label: largest number of rows of a bin in val, and in test.

    Returns:
        `(N,)` train, val or test. All rows of a bin with fewer than three rows are in train.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for index, bin in enumerate(bins):
        members[bin].append(index)
    splits = ["train"] * len(ids)
    for rows in members.values():
        rows.sort(key=lambda index: shuffle_key(ids[index], "split"))
        share = min(len(rows) // 3, max_per_label)
        for index in rows[:share]:
            splits[index] = "val"
        for index in rows[share : 2 * share]:
            splits[index] = "test"
    return splits


def subject_splits(subjects: Sequence[str], bins: Iterable[int], max_per_label: int) -> list[str]:
    """Assigns each row to a split, with all rows of a subject in the same one.

    First pass, subjects with the rarest label first: a subject goes to test or val if it adds more rows that the
    balanced rule asks for there than rows beyond them, with all labels weighted equally; otherwise it stays in train.
    Second pass, smallest subjects first: a subject goes to a split that still has no row of one of its labels. Train
    keeps at least one subject of every label. The time is linear in the number of rows.
    `components.ingest.balance` measures how far the result is from the rule.

    Args:
        subjects: `(N,)` the person or device in each row.
        bins: `(N,)` label bin of each row.
        max_per_label: the rule asks for at most this many rows of a bin in val, and in test.

    Returns:
        `(N,)` train, val or test.
    """
    labels: dict[str, Counter[int]] = defaultdict(Counter)
    for subject, bin in zip(subjects, bins, strict=True):
        labels[subject][bin] += 1
    total: Counter[int] = Counter()
    for counts in labels.values():
        total.update(counts)
    wanted = {bin: min(count // 3, max_per_label) for bin, count in total.items()}
    assignment = _Assignment(labels, wanted)
    order = sorted(labels, key=lambda s: (min(total[bin] for bin in labels[s]), shuffle_key(s, "subject")))
    for subject in order:
        assignment.assign_by_gain(subject)
    for subject in sorted(order, key=lambda s: (labels[s].total(), shuffle_key(s, "subject"))):
        assignment.assign_to_gap(subject)
    return [assignment.split.get(subject, "train") for subject in subjects]


class _Assignment:
    """The split of each assigned subject, and the rows that val and test still need; other subjects are in train."""

    def __init__(self, labels: Mapping[str, Counter[int]], wanted: Mapping[int, int]) -> None:
        self._labels, self._wanted = labels, wanted
        self._needed = {split: dict(wanted) for split in ("test", "val")}
        self._in_train = Counter(bin for counts in labels.values() for bin in counts)  # train subjects per bin
        self.split: dict[str, str] = {}

    def assign_by_gain(self, subject: str) -> None:
        """Assigns the subject to the split with the larger gain, if the gain is positive."""
        gain, split = max((self._gain(subject, split), split) for split in self._needed)
        if gain > 0 and self._dispensable(subject):
            self._assign(subject, split)

    def assign_to_gap(self, subject: str) -> None:
        """Assigns the subject to a split that needs one of its labels and has no row of it yet."""
        for split, needed in self._needed.items():
            missing = any(0 < self._wanted[bin] == needed[bin] for bin in self._labels[subject])
            if subject not in self.split and missing and self._dispensable(subject):
                self._assign(subject, split)

    def _gain(self, subject: str, split: str) -> float:
        """Needed rows minus surplus rows that the subject adds, each divided by the rows wanted of its label."""
        gain = 0.0
        for bin, count in sorted(self._labels[subject].items()):  # sorted, so that the float sum is reproducible
            filled = min(count, max(self._needed[split][bin], 0))
            gain += (2 * filled - count) / max(self._wanted[bin], 1)
        return gain

    def _dispensable(self, subject: str) -> bool:
        """Whether train keeps another subject of each of its labels."""
        return all(self._in_train[bin] > 1 for bin in self._labels[subject])

    def _assign(self, subject: str, split: str) -> None:
        self.split[subject] = split
        for bin, count in self._labels[subject].items():
            self._needed[split][bin] -= count
            self._in_train[bin] -= 1
