"""`python -m components data make|ensure|export`: prepares the raw input in data/, and exports rows for other tools."""

import argparse
from dataclasses import fields
from pathlib import Path

from components.commands.data.make import GaugeTable, make

HELP = {
    "seed": "random seed; it determines every pixel",
    "head": "training scenes of the most common reading",
    "operating_point": "the most common reading, in percent",
    "decay": "percent of the scale over which the number of training scenes falls by a factor of e",
    "floor": "training scenes of the rarest reading",
    "val": "validation scenes per reading",
    "test": "test scenes per reading",
}


def main(arguments: list[str]) -> None:
    """Runs the command: generates data/ from a seed, checks it against data.dvc, or exports the rows."""
    args = parser().parse_args(arguments)
    if args.command == "make":
        make(GaugeTable(**{field.name: vars(args)[field.name] for field in fields(GaugeTable)}), args.out)
    elif args.command == "ensure":
        from components.commands.data.ensure import ensure

        ensure()
    else:
        from components.commands.data.export import export_release
        from components.settings import load_settings

        task = load_settings(args.params).task
        written = export_release(args.ingest, args.out, task, args.images, args.shard_mb)
        print(f"{args.out}: " + ", ".join(f"{split} {rows}" for split, rows in written.items()) + " rows")


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m components data", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    with_defaults = argparse.ArgumentDefaultsHelpFormatter
    make = commands.add_parser(
        "make", help="generate the table of gauge scenes from a seed", formatter_class=with_defaults
    )
    make.add_argument("--out", type=Path, default=Path("data"), help="output folder of scenes.csv")
    for field in fields(GaugeTable):
        flag = f"--{field.name.replace('_', '-')}"
        make.add_argument(flag, type=type(field.default), default=field.default, help=HELP[field.name])
    commands.add_parser("ensure", help="fetch or generate data/ if it is missing; fail if it differs from data.dvc")
    export = commands.add_parser("export", help="write the rows in the release's format", formatter_class=with_defaults)
    export.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings; only task.resolution is read"
    )
    export.add_argument("--ingest", type=Path, default=Path("artifacts/ingest"), help="folder of the row shards")
    export.add_argument("--out", type=Path, default=Path("export"), help="output folder")
    export.add_argument(
        "--images", choices=("files", "shards"), default="files", help="write image files, or WebDataset shards"
    )
    export.add_argument("--shard-mb", type=int, default=256, help="size limit of a shard, in MiB")
    return top
