"""`python -m components demo`: takes test images out of the shards, then becomes the page in its own environment."""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from components.console import console
from components.errors import ConcordError
from components.shared.rows.rows import read_rows

ROOT = Path(__file__).parents[3]
NUMBER_OF_IMAGES = 12


def main(arguments: Sequence[str]) -> NoReturn:
    """Starts the page.

    Raises:
        ConcordError: the page's environment or the folder of images is missing.
    """
    args = parser().parse_args(arguments)
    if not args.python.is_file():
        raise ConcordError(f"{args.python}: no such interpreter. `make demo` creates the page's environment.")
    folder = args.images
    if folder is not None and not folder.is_dir():
        raise ConcordError(f"{folder}: no such folder. Give a folder of images with --images.")
    if folder is None and args.ingest.is_dir():
        folder = Path(tempfile.mkdtemp(prefix="concord-demo-"))
        write_test_images(args.ingest, folder)
    words = [str(args.python), "-m", "components.commands.demo.page", "--server", args.server, "--port", str(args.port)]
    words += [] if folder is None else ["--images", str(folder.resolve())]
    console.print(f"page at http://127.0.0.1:{args.port}; Ctrl-C ends it", markup=False)
    os.execve(args.python, words, os.environ | {"PYTHONPATH": str(ROOT)})


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="python -m components demo", description="Shows what the model of a scoring server (make serve) reads."
    )
    top.add_argument("--server", default="http://127.0.0.1:5002", help="the scoring server (default: %(default)s)")
    top.add_argument("--port", type=int, default=5003, help="of the page, on 127.0.0.1 (default: %(default)s)")
    top.add_argument("--images", type=Path, metavar="FOLDER", help="images to pick from (default: some test images)")
    top.add_argument(
        "--ingest",
        type=Path,
        default=Path("artifacts/ingest"),
        help="row shards with test images (default: %(default)s)",
    )
    top.add_argument(
        "--python", type=Path, default=Path(".venv-demo/bin/python"), help="of the page (default: %(default)s)"
    )
    return top


def write_test_images(ingest: Path, folder: Path) -> None:
    """Writes one test image each of numbers along the range; the file's name has the number."""
    found: dict[float, bytes] = {}
    for batch in read_rows(ingest, "test"):
        for row in batch.select(["image", "target"]).to_pylist():
            found.setdefault(row["target"], row["image"]["bytes"])
    targets = sorted(found)
    count = min(NUMBER_OF_IMAGES, len(targets))
    for k in range(count):
        target = targets[round(k * (len(targets) - 1) / max(count - 1, 1))]
        (folder / f"true {target:g}{_ending(found[target])}").write_bytes(found[target])


def _ending(image: bytes) -> str:
    """The ending of an image file, by its first bytes."""
    known = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"GI": ".gif", b"BM": ".bmp", b"RI": ".webp"}
    return known.get(image[:2], ".tif")
