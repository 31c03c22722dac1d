"""Finds the images that the command line names: files, folders, patterns, tables and buckets."""

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from components.commands.predict.images import Image, Source, printable_name, reason
from components.commands.predict.tables import table_source
from components.errors import ConcordError
from components.ingest.sources.image_files import IMAGE_SUFFIXES
from components.ingest.sources.tables import TABLE_SUFFIXES
from components.s3_address import S3Address, is_s3, parse_location


def open_sources(words: Sequence[str], column: str | None, stack: ExitStack) -> list[Source]:
    """The sources that the words name, in their order.

    Args:
        words: of the command line.
        column: the tables' column of images; None: see `components.commands.predict.tables`.
        stack: holds what is fetched from buckets.

    Raises:
        ConcordError: a folder, pattern or bucket has no image, a table has no column of images, or an address is
            malformed. A missing image file is not an error here.
    """
    return [source for word in words for source in _open(word, column, stack)]


def _open(word: str, column: str | None, stack: ExitStack) -> list[Source]:
    if is_s3(word):
        from components.shared.s3.local_copy import local_copy

        address = _address(word)
        return [folder_source(stack.enter_context(local_copy(address)), str(address))]
    path = Path(word)
    if not os.path.lexists(path):
        if glob.has_magic(word):
            return [source for found in _matches(word) for source in _open(found, column, stack)]
        if "://" in word:
            _address(word)
    if path.is_dir():
        return [folder_source(path, str(path))]
    if path.suffix.lower() in TABLE_SUFFIXES:
        return [table_source(path, column)]
    return [Source(lambda: iter([Image(printable_name(str(path)), path)]), lambda: 1)]


def _address(word: str) -> S3Address:
    try:
        address = parse_location(word)
    except ValueError as error:
        raise ConcordError(f"IMAGES: {error}.") from None
    assert isinstance(address, S3Address)
    return address


def _matches(pattern: str) -> list[str]:
    found = sorted(glob.glob(pattern, recursive=True))
    if not found:
        raise ConcordError(f"{pattern}: nothing matches this pattern. Correct it, or name files or folders.")
    return found


def folder_source(folder: Path, name: str) -> Source:
    """The images below a folder, in the order of their paths.

    Args:
        name: of the folder in the results.

    Raises:
        ConcordError: there is none.
    """
    images = partial(_walk, folder, name)
    if next(images(), None) is None:
        raise ConcordError(f"{name}: no image in this folder (files that end in {', '.join(IMAGE_SUFFIXES)}).")
    return Source(images, lambda: sum(1 for _ in images()))


def _walk(folder: Path, name: str) -> Iterator[Image]:
    """Hidden files are left out: some systems put `._photo.jpg`, which is no image, beside photo.jpg."""
    try:
        with os.scandir(folder) as scan:
            entries = sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda each: each.name)
    except OSError as error:
        yield Image(printable_name(name), error=reason(error))
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, f"{name}/{entry.name}")
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            yield Image(printable_name(f"{name}/{entry.name}"), folder / entry.name)
