"""Guesses the regular expression that reads number, subject and split from the paths of images."""

import re
from collections.abc import Sequence

from components.commands.init.ask import choose
from components.commands.init.columns import TARGET_NAMES, as_number, is_subject
from components.commands.init.discover import is_split
from components.errors import ConcordError

NUMBER = r"-?[0-9]+(?:[.][0-9]+)?"
_TARGET = f"(?P<target>{NUMBER})"
_END = r"(?![0-9]|[.][0-9])"  # the number is complete
_KEY = re.compile(rf"(?:^|[/_. -])([A-Za-z]+)[-_= ]?{NUMBER}(?=[/_. -]|$)")
_COUNTERS = (
    "img", "image", "images", "frame", "photo", "pic", "picture", "dsc", "scan", "id", "no", "nr", "file", "sample",
    "part",
)  # fmt: skip
# Without a word before the number: its folder, or the beginning or the end of the file name.
_PLACES = (
    rf"(?:^|/){_TARGET}/[^/]+$",
    rf"(?:^|/){_TARGET}_[^/]*$",
    rf"_{_TARGET}[.][A-Za-z]+$",
)  # fmt: skip
_MATCHES = 0.95  # share of the paths that an expression must match
_DISTINCT = 0.8  # share of different numbers above which they count the files


def guess_pattern(paths: Sequence[str], source: str) -> str:
    """The expression for paths such as age-35_0012.jpg, 35/0012.jpg or test/patient7/35_1.png.

    Args:
        paths: of some or all images, relative to the data set.
        source: how messages call the data set.

    Raises:
        ConcordError: no expression fits, or several do and nobody can be asked.
    """
    found = target_patterns(paths)
    if not found:
        raise ConcordError(
            f"{source}: no table, and no number found in paths such as {paths[0]!r}. Say where it is with a regular "
            "expression: --pattern 'age-(?P<target>[0-9]+)'; further groups may be subject and split."
        )
    known = [pattern for word, pattern in found if word in TARGET_NAMES]
    patterns = known if len(known) == 1 else [pattern for _, pattern in found]
    target = patterns[0] if len(patterns) == 1 else choose("the number", patterns, "--pattern", source)
    return with_split(with_subject(target, paths), paths)


def target_patterns(paths: Sequence[str]) -> list[tuple[str, str]]:
    """The word before the number (empty for none) and the expression, for each place where a number may be."""
    stems = [path.rpartition(".")[0] for path in paths]
    words = [{match[1].lower(): match[0] for match in _KEY.finditer(stem)} for stem in stems]
    common = [word for word in words[0] if sum(word in found for found in words) >= _MATCHES * len(paths)]
    found = [
        (word, f"(?i:(?:^|[/_. -]){word}[-_= ]?){_TARGET}{_END}")
        for word in common
        if word not in _COUNTERS and not is_subject(word) and not is_split(word)
    ]
    found += [("", pattern) for pattern in _PLACES]
    return [(word, pattern) for word, pattern in found if reads_target(pattern, paths)]


def word_before(pattern: str | None) -> str | None:
    """The word before the number in an expression that was guessed."""
    match = re.search(r"([a-z]+)\[-_= \]\?\)\(\?P<target>", pattern or "")
    return match[1] if match else None


def reads_target(pattern: str, paths: Sequence[str]) -> bool:
    """Whether the expression finds numbers in the paths that can be targets: different ones, but not one per file."""
    matches = [re.search(pattern, path) for path in paths]
    numbers = [as_number(match["target"]) for match in matches if match]
    different = len(set(numbers))
    if len(numbers) < _MATCHES * len(paths) or different < 3:
        return False
    return len(numbers) < 10 or different <= _DISTINCT * len(numbers)


def with_subject(target: str, paths: Sequence[str]) -> str:
    """The expression with a group for the subject, if all paths have one before the number: patient7, device-a."""
    words = "|".join(sorted({m[0] for path in paths[:20] for m in re.finditer(r"[A-Za-z]+", path) if is_subject(m[0])}))
    if not words:
        return target
    pattern = f"(?:{words})[-_=]?(?P<subject>[A-Za-z0-9]+).*{target}"
    if all(re.search(pattern, path) for path in paths):
        return pattern
    return target


def with_split(pattern: str, paths: Sequence[str]) -> str:
    """The expression with a group for the split, if all paths begin with the folder of one."""
    folders = {path.partition("/")[0] for path in paths if "/" in path}
    if not folders or not all(map(is_split, folders)) or any("/" not in path for path in paths):
        return pattern
    split = f"^(?P<split>{'|'.join(sorted(folders))})"
    combined = f"{split}(?=/).*?{pattern}"
    return combined if all(re.search(combined, path) for path in paths if re.search(pattern, path)) else pattern


def split_of_parts(paths: Sequence[str]) -> str | None:
    """The expression for the split in paths such as train/0001.png or data/train-00000-of-00002.parquet/17."""
    for pattern in (r"^(?P<split>[A-Za-z]+)/", r"(?:^|/)(?P<split>[A-Za-z]+)(?:-[0-9]+-of-[0-9]+)?[.]parquet/[0-9]+$"):
        matches = [re.search(pattern, path) for path in paths]
        splits = {match["split"] for match in matches if match}
        if all(matches) and len(splits) > 1 and all(map(is_split, splits)):
            return pattern
    return None
