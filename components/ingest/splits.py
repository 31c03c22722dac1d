"""Splits rows into train, val and test by hashes, so that new data hardly move the old.

The balanced rule of Yang et al. (2021), "Delving into Deep Imbalanced Regression", gives min(count // 3, limit) rows of
each label to val, as many to test, and the rest to train. No rule can give exactly these counts and never move a row
when data are added: of any three rows of a label one would be a test row, so a fourth row would move one of them. Here
the hash of a row's content, or of its subject, chooses the third that it belongs to: test, val or train. The rule's
counts hold on average, and its limit exactly.

When data are added, a row of val or test moves to train where its label is full and a new row has a lower hash. A row
that was trained on moves to val or test only for a label that had fewer than three rows, or none of train's third.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

_THIRDS = ("test", "val", "train")


def shuffle_key(id: str | bytes, purpose: str) -> bytes:
    """A sort key that shuffles ids or contents: 32 bytes, uniformly distributed, independent for each purpose."""
    return hashlib.sha256(purpose.encode() + b"\0" + (id.encode() if isinstance(id, str) else id)).digest()


def _third(key: bytes) -> str:
    """The split that a hash chooses: test, val or train, each with probability 1/3 and in the order of the hashes."""
    return _THIRDS[int.from_bytes(key[:8]) * 3 >> 64]


def balanced_splits(contents: Sequence[str | bytes], bins: Iterable[int], max_per_label: int) -> list[str]:
    """Assigns each row to a split by the balanced rule; rows of a bin with equal contents get the same split.

    Args:
        contents: `(N,)` what identifies the rows, such as the hashes of their images.
        bins: `(N,)` label bin of each row.
        max_per_label: largest number of contents of a bin in val, and in test.

    Returns:
        `(N,)` train, val or test. A bin with fewer than three contents is in train; any other has rows in every split.
    """
    keys = [shuffle_key(content, "split") for content in contents]
    members: dict[int, set[bytes]] = defaultdict(set)
    rows = list(zip(bins, keys, strict=True))
    for bin, key in rows:
        members[bin].add(key)
    splits = {bin: _split_bin(sorted(unsorted), max_per_label) for bin, unsorted in members.items()}
    return [splits[bin][key] for bin, key in rows]


def _split_bin(keys: list[bytes], limit: int) -> dict[bytes, str]:
    """Split of each key of a bin; the keys are sorted."""
    if len(keys) < 3:
        return dict.fromkeys(keys, "train")
    groups = {split: [key for key in keys if _third(key) == split][:limit] for split in ("test", "val")}
    groups["train"] = sorted(set(keys).difference(*groups.values()))
    for split, group in groups.items():
        if not group:  # the largest group gives its nearest key: the highest to train, or else the lowest
            largest = max(groups.values(), key=len)
            group.append(largest.pop(-1 if split == "train" else 0))
    return {key: split for split, group in groups.items() for key in group}


def subject_splits(subjects: Sequence[str], bins: Iterable[int], max_per_label: int) -> list[str]:
    """Assigns each row to a split, with all rows of a subject in the same one.

    The hash of a subject chooses its third. The subjects of val, and those of test, are taken in the order of their
    hashes; a label is full from the subject on with which its rows exceed the limit. A subject stays if it has more
    rows of labels that are not full than of full ones, with all labels weighted equally, or, smallest subjects first,
    if its split has no row of one of its labels; otherwise it goes to train. Train keeps at least one subject of every
    label. If val or test is empty then, which needs very few subjects, it takes the one with the lowest hash. The time
    is linear in the number of rows. `components.ingest.balance` measures how far the result is from the rule.

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
    keys = {subject: shuffle_key(subject, "subject") for subject in labels}
    order = sorted(labels, key=keys.__getitem__)
    assignment = _Assignment(labels)
    for split in ("test", "val"):
        third = [subject for subject in order if _third(keys[subject]) == split]
        for index in _below_limit([labels[subject] for subject in third], max_per_label):
            assignment.assign(third[index], split)
        for name in sorted(third, key=lambda subject: labels[subject].total()):
            if assignment.fills_gap(name, split):
                assignment.assign(name, split)
    for split in ("test", "val"):
        for name in order:
            if not assignment.seen[split]:
                assignment.assign(name, split)
    return [assignment.split.get(subject, "train") for subject in subjects]


def _below_limit(subjects: Sequence[Counter[int]], limit: int) -> list[int]:
    """Indices of the subjects that have more rows of labels that are not full than of full ones.

    Args:
        subjects: rows per label of each, in order.
        limit: a label is full from the subject on with which its rows exceed this.
    """
    total: Counter[int] = Counter()
    for counts in subjects:
        total.update(counts)
    rows: Counter[int] = Counter()
    chosen = []
    for index, counts in enumerate(subjects):
        rows.update(counts)
        gain = 0.0
        for bin, count in sorted(counts.items()):  # sorted, so that the float sum is reproducible
            gain += (count if rows[bin] <= limit else -count) / min(total[bin], limit)
        if gain > 0:
            chosen.append(index)
    return chosen


class _Assignment:
    """The split of each assigned subject, and the labels that each split has; other subjects are in train."""

    def __init__(self, labels: Mapping[str, Counter[int]]) -> None:
        self._labels = labels
        self._in_train = Counter(bin for counts in labels.values() for bin in counts)  # train subjects per bin
        self.split: dict[str, str] = {}
        self.seen: dict[str, set[int]] = {"test": set(), "val": set()}

    def fills_gap(self, subject: str, split: str) -> bool:
        """Whether the split has no row of one of the subject's labels."""
        return not self.seen[split].issuperset(self._labels[subject])

    def assign(self, subject: str, split: str) -> None:
        """Assigns the subject, unless it has a split or train would lose its last subject of a label."""
        if subject in self.split or any(self._in_train[bin] == 1 for bin in self._labels[subject]):
            return
        self.split[subject] = split
        self.seen[split].update(self._labels[subject])
        self._in_train.subtract(self._labels[subject].keys())
