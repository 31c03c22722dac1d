"""`python -m components data make|ensure|export`: the raw input in data/, and rows for other tools."""

import argparse
from dataclasses import fields
from pathlib import Path

from components.commands.data.make import GaugeTable, make

HELP = {
    "seed": "decides every pixel",
    "head": "training scenes of the commonest reading",
    "operating_point": "the commonest reading, in percent",
    "decay": "percent over which the number of scenes falls by e",
    "floor": "training scenes of the rarest reading",
    "val": "validation scenes per reading",
    "test": "test scenes per reading",
}


def main(words: list[str]) -> None:
    """Makes data/ from a seed, checks it against data.dvc, or exports the rows."""
    given = parser().parse_args(words)
    if given.command == "make":
        make(GaugeTable(**{field.name: vars(given)[field.name] for field in fields(GaugeTable)}), given.out)
    elif given.command == "ensure":
        from components.commands.data.ensure import ensure

        ensure()
    else:
        from components.commands.data.export import export_release
        from components.settings import load_settings

        task = load_settings(given.params).task
        written = export_release(given.ingest, given.out, task, given.images, given.shard_mb)
        print(f"{given.out}: " + ", ".join(f"{split} {rows}" for split, rows in written.items()) + " rows")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m components data", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    with_defaults = argparse.ArgumentDefaultsHelpFormatter
    make = commands.add_parser("make", help="draw the table of gauge scenes", formatter_class=with_defaults)
    make.add_argument("--out", type=Path, default=Path("data"), help="folder that gets scenes.csv")
    for field in fields(GaugeTable):
        flag = f"--{field.name.replace('_', '-')}"
        make.add_argument(flag, type=type(field.default), default=field.default, help=HELP[field.name])
    commands.add_parser("ensure", help="pull or make data/ if it is missing; refuse it if it differs from data.dvc")
    export = commands.add_parser("export", help="write the rows in the release's form", formatter_class=with_defaults)
    export.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings; of them task.resolution")
    export.add_argument("--ingest", type=Path, default=Path("artifacts/ingest"), help="row shards")
    export.add_argument("--out", type=Path, default=Path("export"), help="folder that gets the files")
    export.add_argument("--images", choices=("files", "shards"), default="files", help="loose, or in WebDataset shards")
    export.add_argument("--shard-mb", type=int, default=256, help="size limit of a shard")
    return top
