"""`python -m components predict IMAGES...`: reads numbers off new images.

    python -m components predict photo.jpg --model artifacts/grpo
    python -m components predict photos/ 'more/*.png' labels.csv s3://bucket/photos --out readings.csv

Libraries are imported when they are needed, so that `--help` answers at once.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path

from components.commands.predict.output import FORMATS, new_output
from components.console import console
from components.errors import ConcordError
from components.shared.io.stop import exit_code

UNREADABLE = 3  # exit code where some images could not be read


def main(arguments: Sequence[str]) -> int:
    """Reads the images and shows or writes the results.

    Returns:
        Exit code: 0 success, 3 where some images could not be read, 130 interrupted.

    Raises:
        ConcordError: no image is found, the model cannot be loaded, or the output cannot be written.
    """
    options = _parsed(arguments)
    try:
        with ExitStack() as stack:
            return _predict(options, stack)
    except KeyboardInterrupt as stop:
        with suppress(OSError):  # the terminal may be gone
            console.print("stopped; no output was written")
        return exit_code(stop)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="python -m components predict",
        description="Reads a number off each image, with its interval, in the order of the input.",
        epilog="Exit code: 0 success, 1 error, 2 usage error, 3 some images could not be read (see the column error).",
        allow_abbrev=False,
    )
    top.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="image files; folders, searched for images at any depth (hidden files are left out); patterns in quotes; "
        "tables (.csv, .tsv, .jsonl, .parquet) with a column of images; s3://bucket/prefix",
    )
    top.add_argument(
        "--image",
        metavar="COLUMN",
        help="the tables' column of images: paths relative to the table or, in Parquet, the images themselves "
        "(default: image, path, file or file_name)",
    )
    top.add_argument(
        "--model",
        help="registered model as NAME, NAME/VERSION or NAME@ALIAS, or a model folder such as artifacts/grpo "
        "(default: the champion of the params' registered model)",
    )
    top.add_argument(
        "--params",
        type=Path,
        default=Path("params.yaml"),
        help="settings that name the registered model, and the task of a folder without reader.json "
        "(default: %(default)s)",
    )
    top.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"write all results to a file ({', '.join(FORMATS)}); at the end it replaces an existing one",
    )
    top.add_argument("--balance", type=float, help="part of the training prior that is divided out (0 to 1.2)")
    top.add_argument("--coverage", type=float, help="share of true values inside the intervals (0.5 to 0.999)")
    top.add_argument(
        "--rank",
        choices=("rare", "unsure"),
        help="what to look at or to label first: by the probability of a few-shot reading, or by the interval's width",
    )
    return top


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    top = parser()
    options = top.parse_args(arguments)
    if options.out is None:
        return options
    if options.out.suffix.lower() not in FORMATS:
        top.error(f"argument --out: {options.out}: the file must end in {', '.join(FORMATS)}")
    if any(options.out.exists() and Path(word).exists() and options.out.samefile(word) for word in options.images):
        top.error(f"argument --out: {options.out} is one of the inputs; give another file")
    return options


def _predict(options: argparse.Namespace, stack: ExitStack) -> int:
    """Reads the images.

    Args:
        stack: holds what is fetched from buckets.
    """
    from components.commands.predict.sources import open_sources

    sources = open_sources(options.images, options.image, stack)
    total = sum(source.count() for source in sources)
    if not total:
        raise ConcordError(f"{', '.join(options.images)}: no image; the table has no rows.")
    with new_output(options.out, ranked=options.rank is not None) as write:
        from components.commands.predict.model import load_reader
        from components.commands.predict.reading import read_images
        from components.commands.predict.results import ranked
        from components.commands.predict.screen import Screen

        loaded = load_reader(options.model, options.params)
        reader = loaded.reader.answering(options.balance, options.coverage)
        screen = Screen(loaded.name, reader, options.out)
        images = chain.from_iterable(source.images() for source in sources)
        results = read_images(reader, images, loaded.batch_size, total, options.rank)
        for result in ranked(results) if options.rank else results:
            write(result)
            screen.add(result)
    screen.show()
    return UNREADABLE if screen.unreadable else 0
