"""Train, validation and test: the reference rule, and an order that depends on nothing but the ids.

Yang et al. (2021), "Delving into Deep Imbalanced Regression": of every label, shuffled, min(count // 3, limit) to
validation, as many to test, the rest to train. Here the shuffle is by SHA-256 of the id, so that a split is the same on
every platform, in every version, and in whatever order the rows come.

By subject: what the rule asks for, as far as whole subjects (persons, devices) can give it.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence


def shuffle_key(id: str, purpose: str) -> bytes:
    """Sort by it to shuffle: 32 bytes, uniform over ids, and unrelated from one purpose to another."""
    return hashlib.sha256(f"{purpose}\0{id}".encode()).digest()


def balanced_splits(ids: Sequence[str], bins: Iterable[int], max_per_label: int) -> list[str]:
    """The split of each row.

    Args:
        ids: `(N,)` unique.
        bins: `(N,)` label bin of each row.
        max_per_label: at most this many of a bin to val, and to test.

    Returns:
        `(N,)` train, val or test. A bin with fewer than three rows is in train alone.
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
    """The split of each row, where all rows of a subject are in one.

    Subjects are gone through once, those with the rarest label first. One goes to test or to val where it fills more of
    what the rule asks for there than it overfills, each label weighed alike; else to train. A label that a split has
    nothing of yet then gets the smallest subject that has it. Train keeps a subject of every label. Time is linear in
    the rows. See `components.ingest.balance` for how far the outcome is from the rule.

    Args:
        subjects: `(N,)` whom or what each row shows.
        bins: `(N,)` label bin of each row.
        max_per_label: the rule asks for at most this many of a bin in val, and in test.

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
    chosen = _Assignment(labels, wanted)
    order = sorted(labels, key=lambda s: (min(total[bin] for bin in labels[s]), shuffle_key(s, "subject")))
    for subject in order:
        chosen.fill(subject)
    for subject in sorted(order, key=lambda s: (labels[s].total(), shuffle_key(s, "subject"))):
        chosen.fill_gaps(subject)
    return [chosen.split.get(subject, "train") for subject in subjects]


class _Assignment:
    """Which subject is where, and what val and test still want; a subject that is nowhere is in train."""

    def __init__(self, labels: Mapping[str, Counter[int]], wanted: Mapping[int, int]) -> None:
        self._labels, self._wanted = labels, wanted
        self._left = {split: dict(wanted) for split in ("test", "val")}
        self._in_train = Counter(bin for counts in labels.values() for bin in counts)  # subjects that have the label
        self.split: dict[str, str] = {}

    def fill(self, subject: str) -> None:
        """Puts it where it is of most use, if it is of any."""
        gain, split = max((self._gain(subject, split), split) for split in self._left)
        if gain > 0 and self._spared(subject):
            self._put(subject, split)

    def fill_gaps(self, subject: str) -> None:
        """Puts it where a label of it is wanted and missing altogether."""
        for split, left in self._left.items():
            missing = any(0 < self._wanted[bin] == left[bin] for bin in self._labels[subject])
            if subject not in self.split and missing and self._spared(subject):
                self._put(subject, split)

    def _gain(self, subject: str, split: str) -> float:
        """Wanted rows that it brings less those over, each as a share of what is wanted of the label."""
        gain = 0.0
        for bin, count in sorted(self._labels[subject].items()):  # in one order: floats are added
            filled = min(count, max(self._left[split][bin], 0))
            gain += (2 * filled - count) / max(self._wanted[bin], 1)
        return gain

    def _spared(self, subject: str) -> bool:
        return all(self._in_train[bin] > 1 for bin in self._labels[subject])

    def _put(self, subject: str, split: str) -> None:
        self.split[subject] = split
        for bin, count in self._labels[subject].items():
            self._left[split][bin] -= count
            self._in_train[bin] -= 1
