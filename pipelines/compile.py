"""`python -m pipelines compile`: writes the Kubeflow pipeline as YAML; params.yaml gives the defaults of its inputs."""

import argparse
import os
from pathlib import Path

import yaml

from components.console import console
from components.errors import ConcordError
from components.settings import Settings, load_settings
from pipelines.cluster_settings import CLUSTER_VARIABLE, Cluster, load_cluster

DATA_DVC_FILE = Path("data.dvc")


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    sub.add_argument(
        "--out", type=Path, default=Path("artifacts/pipeline/training.yaml"), help="(default: %(default)s)"
    )
    add_pipeline_arguments(sub)
    sub.add_argument("--data-hash", help="DVC's md5 of the raw input (default: the one in data.dvc)")


def add_pipeline_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the arguments of every command that compiles the pipeline."""
    sub.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
    sub.add_argument(
        "--cluster",
        type=Path,
        help=f"settings of the cluster (default: ${CLUSTER_VARIABLE}, or pipelines/clusters/default.yaml)",
    )
    sub.add_argument(
        "--image", help="container image of the steps (default: $CONCORD_IMAGE, or the one in the cluster file)"
    )
    sub.add_argument(
        "--cache",
        choices=("on", "off"),
        default="on",
        help="off: compute every step again, even where its outputs are cached (default: %(default)s)",
    )


def command(args: argparse.Namespace) -> int:
    """Compiles the pipeline; returns exit code 0."""
    settings, cluster = load_settings(args.params), load_cluster(args.cluster)
    image = chosen_image(args.image, cluster)
    data_hash = dvc_file_hash(DATA_DVC_FILE) if args.data_hash is None else args.data_hash
    compile_pipeline(settings, cluster, image, data_hash, args.out, args.cache == "on")
    console.print(f"{args.out}: pipeline for image {image}, settings from {args.params}", markup=False)
    if not data_hash:
        console.print(
            "there is no data.dvc, so the input data_hash has no default: set it when you submit the pipeline"
        )
    return 0


def chosen_image(image: str | None, cluster: Cluster) -> str:
    """Returns the image from the command line, or else from CONCORD_IMAGE, or else from the cluster file."""
    return image or os.environ.get("CONCORD_IMAGE") or cluster.image


def compile_pipeline(
    settings: Settings,
    cluster: Cluster,
    image: str,
    data_hash: str,
    out: Path,
    reuse: bool = True,
    find_newest: bool = False,
) -> None:
    """Compiles the pipeline to `out`. The same code, settings, image and hash give the same bytes.

    Args:
        settings, cluster, image, data_hash, reuse, find_newest: see `training_pipeline`.
        out: the YAML file.

    Raises:
        ConcordError: settings of the cluster contradict those of the experiment.
    """
    from kfp import compiler

    from pipelines.training import training_pipeline

    out.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(training_pipeline(settings, cluster, image, data_hash, reuse, find_newest), str(out))


def dvc_file_hash(path: Path) -> str:
    """Returns the md5 in a .dvc file with one output; empty if the file does not exist.

    Raises:
        ConcordError: the file is not a .dvc file with one output.
    """
    if not path.exists():
        return ""
    try:
        return str(yaml.safe_load(path.read_text(encoding="utf-8"))["outs"][0]["md5"])
    except (yaml.YAMLError, LookupError, TypeError) as error:
        raise ConcordError(f"{path}: not a .dvc file with a hash ({error!r}). `dvc add` writes one.") from None
