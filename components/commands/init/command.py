"""`python -m components init DATA`: looks at a data set, shows what it found, and writes params.yaml for it."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from components.commands.init.ask import confirm
from components.commands.init.discover import open_data_set
from components.commands.init.fill import fill
from components.commands.init.look import look
from components.commands.init.show import show_errors, show_histogram, show_settings
from components.commands.init.survey import survey_images
from components.commands.init.write import model_settings, template_of
from components.errors import ConcordError
from components.settings import Settings, load_settings
from components.shared.io.atomic import write_text

DESCRIPTION = """\
Looks at a data set and writes the settings of an experiment on it. DATA is a CSV, TSV, JSON lines or Parquet table
with images beside or inside it; a folder with such a table; a folder of images with the number in their paths; or
s3://bucket/prefix of one of these. The data is never moved or changed. What cannot be guessed is asked on a terminal;
elsewhere a flag says it."""


def main(arguments: Sequence[str]) -> None:
    """Writes the params file.

    Raises:
        ConcordError: the data cannot be read, something cannot be guessed, or the params file exists.
    """
    options = parser().parse_args(arguments)
    check_pattern(options.pattern)
    check_positive("--resolution", options.resolution)
    check_positive("--bin-width", options.bin_width)
    check_params(options.params, options.force)
    model_settings(options.model, 0)  # reports a wrong name before the data is read
    template = load_settings(template_of(options.model))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    with open_data_set(options.data, options.params.parent) as data:
        found = look(data, template.ingest, options)
        survey = survey_images(found.labels, found.images, found.errors)
    filled = fill(found, survey, template, options)
    show_settings(console, filled.settings, found.rows, survey)
    show_histogram(console, filled.histogram, filled.settings)
    show_errors(console, found.errors, found.rows)
    for note in [*found.notes, *filled.notes]:
        console.print(Text.assemble(("note", "bold"), f" {note}"), soft_wrap=True)
    write_text(options.params, filled.text)
    following = next_command(options.params, filled.settings)
    console.print(Text(f"{options.params} written. Next: {following}"), soft_wrap=True)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    top = argparse.ArgumentParser(
        prog="python -m components init", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("data", metavar="DATA", help="table, folder or s3://bucket/prefix")
    columns = top.add_argument_group("columns (default: guessed)")
    columns.add_argument("--image", metavar="COLUMN", help="images: their paths, or the images themselves")
    columns.add_argument("--target", metavar="COLUMN", help="the number to read")
    columns.add_argument("--split", metavar="COLUMN", help="train, val or test; or a rule: balanced, subject")
    columns.add_argument(
        "--subject", metavar="COLUMN", help="person or device; its images stay in one split ('': none)"
    )
    columns.add_argument(
        "--pattern",
        metavar="REGEX",
        help="searched in each image's path; its groups target, subject, split are columns",
    )
    task = top.add_argument_group("task (default: from the labels)")
    task.add_argument("--question", help="what the model is asked")
    task.add_argument("--unit", help="unit of the answers")
    task.add_argument("--low", type=float, help="lowest answer")
    task.add_argument("--high", type=float, help="highest answer")
    task.add_argument("--resolution", type=float, help="step between answers")
    task.add_argument("--bin-width", type=float, help="width of the label bins that define the shot groups")
    other = top.add_argument_group("experiment")
    other.add_argument("--name", help="of the experiment and the registered model (default: the folder's)")
    other.add_argument(
        "--model", default="tiny", help="tiny, a hub id with its commit (ID@COMMIT), or a folder (default: %(default)s)"
    )
    other.add_argument(
        "--params", type=Path, default=Path("params.yaml"), metavar="OUT", help="file to write (default: %(default)s)"
    )
    other.add_argument("--force", action="store_true", help="replace the params file if it exists")
    return top


def check_pattern(pattern: str | None) -> None:
    """Raises ConcordError if the pattern is not a regular expression with named groups."""
    try:
        groups = re.compile(pattern or "").groupindex
    except re.error as error:
        raise ConcordError(f"--pattern {pattern}: not a regular expression: {error}.") from None
    if pattern is not None and not groups:
        raise ConcordError(f"--pattern {pattern}: no named group. Mark the number with (?P<target>...).")


def check_positive(flag: str, value: float | None) -> None:
    """Raises ConcordError if the flag is given and its value is not above 0."""
    if value is not None and not value > 0:
        raise ConcordError(f"{flag} {value:g}: must be above 0.")


def check_params(params: Path, force: bool) -> None:
    """Raises ConcordError if the params file exists and must not be replaced."""
    if not params.exists() or force:
        return
    if not confirm(f"{params} exists. Replace it?"):
        raise ConcordError(f"{params}: exists. Replace it with --force, or write another file with --params OUT.")


def next_command(params: Path, settings: Settings) -> str:
    """What to type after this command."""
    if params.name != "params.yaml" or params.parent.absolute() != Path.cwd():
        return f"python -m components ingest --params {params}"
    versioned = Path("data").absolute() == Path(settings.ingest.path).absolute()
    return "dvc add data && make run" if versioned else "make run"
