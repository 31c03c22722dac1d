"""`python -m components data make|ensure|export`: the raw input, and the rows as others read them."""

import argparse
from pathlib import Path

from components.shared.data.atomic import new_folder
from components.shared.data.gauges import draw_scenes, label_counts, write_scenes


def main(words: list[str]) -> None:
    """Makes data/ from a seed, makes sure that it is there and is what data.dvc says, or exports the rows."""
    parser = argparse.ArgumentParser(prog="python -m components data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="draw the table of gauge scenes", formatter_class=_Defaults)
    make.add_argument("--out", type=Path, default=Path("data"), help="folder that gets scenes.csv")
    make.add_argument("--seed", type=int, default=20260522, help="decides every pixel")
    make.add_argument("--head", type=int, default=300, help="training scenes of the commonest reading")
    make.add_argument("--operating-point", type=int, default=35, help="the commonest reading, in percent")
    make.add_argument("--decay", type=float, default=14.0, help="percent over which the number of scenes falls by e")
    make.add_argument("--floor", type=int, default=5, help="training scenes of the rarest reading")
    make.add_argument("--val", type=int, default=5, help="validation scenes per reading")
    make.add_argument("--test", type=int, default=20, help="test scenes per reading")
    commands.add_parser("ensure", help="pull or make data/ where it is missing; refuse it where data.dvc differs")
    export = commands.add_parser("export", help="the rows in the release's form", formatter_class=_Defaults)
    export.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings; of them task.resolution")
    export.add_argument("--ingest", type=Path, default=Path("artifacts/ingest"), help="row shards")
    export.add_argument("--out", type=Path, default=Path("export"), help="folder that gets the files")
    export.add_argument("--images", choices=("files", "shards"), default="files", help="loose, or in WebDataset shards")
    export.add_argument("--shard-mb", type=int, default=256, help="size limit of a shard")
    given = parser.parse_args(words)
    if given.command == "export":
        from components.ingest.export_command import export_release
        from components.settings import load_settings

        task = load_settings(given.params).task
        written = export_release(given.ingest, given.out, task, given.images, given.shard_mb)
        print(f"{given.out}: " + ", ".join(f"{split} {rows}" for split, rows in written.items()) + " rows")
        return
    if given.command == "ensure":
        from components.ingest.data_ensure import ensure

        ensure()
        return
    counts = label_counts(given.head, given.operating_point, given.decay, given.floor)
    scenes = draw_scenes(given.seed, counts, given.val, given.test)
    with new_folder(given.out) as folder:
        (folder / "scenes.csv").write_text(write_scenes(scenes), encoding="utf-8")
    print(f"{given.out / 'scenes.csv'}: {len(scenes)} scenes, {int(counts.sum())} to train on")


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each default."""
