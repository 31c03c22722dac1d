"""`python -m pipelines`: the training pipeline on Kubeflow.

    python -m pipelines compile --out pipeline.yaml --image registry/concord:1 --params params.yaml
    python -m pipelines lock --run RUN      # dvc.lock from a finished run

kfp is loaded by the command that needs it, so that `--help` answers at once.
"""

import argparse
import os
import sys
from pathlib import Path

import yaml
from rich.console import Console
from rich.text import Text

from components.settings import load_settings
from components.shared.errors import ConcordError
from pipelines import lock

console = Console(stderr=True, highlight=False)


def compile_pipeline(params: Path, image: str, data_hash: str, out: Path) -> None:
    """Compiles the pipeline to `out`. The same settings, image and hash give the same bytes.

    Raises:
        ConcordError: the params file is missing or has faults.
    """
    settings = load_settings(params).model_dump(mode="json", by_alias=True)

    from kfp import compiler

    from pipelines.training import training_pipeline

    out.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(training_pipeline(settings, image, data_hash), str(out))


def pointer_hash(pointer: Path) -> str:
    """The md5 that a .dvc file of one output holds; empty where there is no such file."""
    if not pointer.exists():
        return ""
    return str(yaml.safe_load(pointer.read_text(encoding="utf-8"))["outs"][0]["md5"])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m pipelines", description="The training pipeline on Kubeflow.")
    commands = top.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("compile", help="write the pipeline's YAML")
    sub.add_argument(
        "--out", type=Path, default=Path("artifacts/pipeline/training.yaml"), help="(default: %(default)s)"
    )
    sub.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
    sub.add_argument(
        "--image",
        default=os.environ.get("CONCORD_IMAGE", "concord:latest"),
        help="container image of the steps (default: $CONCORD_IMAGE, now %(default)s)",
    )
    sub.add_argument("--data-hash", help="DVC's md5 of the raw input (default: the one in data.dvc)")
    lock.add_arguments(commands.add_parser("lock", help="write dvc.lock from a finished run"))
    return top


def main(words: list[str]) -> int:
    """Exit code: 0 done, 1 a fault told in words, 2 a wrong command line."""
    given = parser().parse_args(words)
    try:
        if given.command == "lock":
            return lock.command(given)
        data_hash = pointer_hash(Path("data.dvc")) if given.data_hash is None else given.data_hash
        compile_pipeline(given.params, given.image, data_hash, given.out)
    except ConcordError as error:
        console.print(Text.assemble(("error", "bold red"), f" {error}"), soft_wrap=True)
        return 1
    console.print(f"{given.out}: pipeline for image {given.image}, settings from {given.params}", markup=False)
    if not data_hash:
        console.print("no data.dvc here, so the input data_hash has no default: give it when you submit")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
