"""`python -m pipelines compile`: the Kubeflow pipeline as YAML, with params.yaml as the defaults of its inputs."""

import argparse
import os
from pathlib import Path

import yaml

from components.console import console
from components.errors import ConcordError
from components.settings import Settings, load_settings
from pipelines.cluster_settings import VARIABLE, Cluster, load_cluster

POINTER = Path("data.dvc")


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """The command's own words."""
    sub.add_argument(
        "--out", type=Path, default=Path("artifacts/pipeline/training.yaml"), help="(default: %(default)s)"
    )
    add_pipeline_arguments(sub)
    sub.add_argument("--data-hash", help="DVC's md5 of the raw input (default: the one in data.dvc)")


def add_pipeline_arguments(sub: argparse.ArgumentParser) -> None:
    """What every command that compiles takes."""
    sub.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
    sub.add_argument(
        "--cluster",
        type=Path,
        help=f"settings of the cluster (default: ${VARIABLE}, or pipelines/clusters/default.yaml)",
    )
    sub.add_argument("--image", help="container image of the steps (default: $CONCORD_IMAGE, or the cluster file's)")
    sub.add_argument(
        "--cache", choices=("on", "off"), default="on", help="off: every step computes anew (default: %(default)s)"
    )


def command(given: argparse.Namespace) -> int:
    """Compiles; exit code 0."""
    settings, cluster = load_settings(given.params), load_cluster(given.cluster)
    image = chosen_image(given.image, cluster)
    data_hash = pointer_hash(POINTER) if given.data_hash is None else given.data_hash
    compile_pipeline(settings, cluster, image, data_hash, given.out, given.cache == "on")
    console.print(f"{given.out}: pipeline for image {image}, settings from {given.params}", markup=False)
    if not data_hash:
        console.print("no data.dvc here, so the input data_hash has no default: give it when you submit")
    return 0


def chosen_image(given: str | None, cluster: Cluster) -> str:
    """What the command line says, else the environment, else the cluster file."""
    return given or os.environ.get("CONCORD_IMAGE") or cluster.image


def compile_pipeline(
    settings: Settings, cluster: Cluster, image: str, data_hash: str, out: Path, reuse: bool = True
) -> None:
    """Compiles the pipeline to `out`. The same code, settings, image and hash give the same bytes.

    Args:
        settings, cluster, image, data_hash, reuse: see `training_pipeline`.
        out: the YAML file.

    Raises:
        ConcordError: settings of the cluster contradict those of the experiment.
    """
    from kfp import compiler

    from pipelines.training import training_pipeline

    out.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(training_pipeline(settings, cluster, image, data_hash, reuse), str(out))


def pointer_hash(pointer: Path) -> str:
    """The md5 that a .dvc file of one output holds; empty where there is no such file.

    Raises:
        ConcordError: it is no .dvc file of one output.
    """
    if not pointer.exists():
        return ""
    try:
        return str(yaml.safe_load(pointer.read_text(encoding="utf-8"))["outs"][0]["md5"])
    except (yaml.YAMLError, LookupError, TypeError) as error:
        raise ConcordError(f"{pointer}: no .dvc file with a hash ({error!r}). `dvc add` writes one.") from None
