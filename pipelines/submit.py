"""`python -m pipelines submit`: submits the pipeline to a cluster, once or on a schedule."""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from components.console import console
from components.errors import ConcordError
from components.s3_address import parse_location
from components.settings import Settings, load_settings
from components.shared.kubeflow.kubernetes_api import connect_kubernetes
from components.steps import STEPS
from pipelines.check import refuse_errors
from pipelines.cluster_settings import load_cluster
from pipelines.compile import DATA_DVC_FILE, add_pipeline_arguments, chosen_image, compile_pipeline, dvc_file_hash
from pipelines.connection import add_connection_arguments, connect, kubeflow_errors, page_address
from pipelines.run_pods import RunPods
from pipelines.runs_api import common_fields, create_run, create_schedule
from pipelines.watch import watch


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_pipeline_arguments(sub)
    add_connection_arguments(sub)
    sub.add_argument(
        "--data-uri",
        required=True,
        help="address of the raw input: s3://bucket/prefix, or s3://bucket/gauges-* for the newest of several folders",
    )
    sub.add_argument("--data-hash", help="DVC's md5 of the raw input (default: the one in data.dvc)")
    sub.add_argument("--experiment", help="name on Kubeflow and in MLflow (default: experiment in the settings)")
    sub.add_argument("--run-name", help="name of the run (default: the experiment and the time)")
    sub.add_argument(
        "--check",
        choices=("on", "off"),
        default="on",
        help="off: submit even if the cluster of this pod or of kubectl lacks what a run needs (default: %(default)s)",
    )
    sub.add_argument("--wait", action="store_true", help="print the steps' states until the run ends")
    sub.add_argument("--timeout", type=float, metavar="HOURS", help="stop waiting after so many hours (default: never)")
    sub.add_argument(
        "--poll",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="interval at which --wait asks for the states (default: %(default)g)",
    )
    sub.add_argument(
        "--cron", help='create a schedule instead of a run; six fields, the first for seconds: "0 0 2 * * *"'
    )
    sub.add_argument(
        "--max-concurrency", type=int, default=1, help="--cron: how many runs may run at once (default: %(default)s)"
    )
    sub.add_argument("--catch-up", action="store_true", help="--cron: run missed times later")


def command(args: argparse.Namespace) -> int:
    """Submits the pipeline, and prints only the id of the run or schedule on stdout.

    Returns:
        0: submitted; with --wait: the run succeeded.

    Raises:
        ConcordError: the arguments contradict each other, the host cannot be reached or refuses, or with --wait the run
            did not succeed or was not seen to end.
    """
    settings, cluster = load_settings(args.params), load_cluster(args.cluster)
    data_hash = _check_arguments(args)
    experiment = args.experiment or settings.experiment
    name = args.run_name or f"{experiment} {time.strftime('%Y-%m-%d %H:%M:%S')}"
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        image = chosen_image(args.image, cluster)
        compile_pipeline(settings, cluster, image, data_hash, package, args.cache == "on", find_newest=not data_hash)
        with kubeflow_errors("reach the server"):
            client = connect(args)
        if args.check == "on":
            refuse_errors(args.namespace or client.get_user_namespace(), cluster)
        parameters = pipeline_arguments(settings, experiment, args.data_uri, data_hash)
        with kubeflow_errors("submit the pipeline"):
            experiment_id = client.create_experiment(experiment, namespace=args.namespace).experiment_id
            fields = common_fields(package, parameters, cluster, experiment, experiment_id, name)
            if args.cron is not None:
                created_id = create_schedule(client, fields, args.cron, args.max_concurrency, args.catch_up)
            else:
                created_id = create_run(client, fields)
    kind, page = ("schedule", "recurringrun") if args.cron is not None else ("run", "runs")
    console.print(
        f"{kind} {name} of experiment {experiment}: {page_address(args, page, created_id)}",
        markup=False,
        soft_wrap=True,
    )
    print(created_id)
    sys.stdout.flush()
    if not args.wait:
        return 0
    try:
        namespace = args.namespace or client.get_user_namespace()
        pods = RunPods(created_id, lambda: connect_kubernetes(namespace))
        return watch(client, created_id, pods, args.poll, args.timeout)
    except KeyboardInterrupt:
        console.print(f"run {created_id} is no longer watched, but continues on the cluster", markup=False)
        raise


def _check_arguments(args: argparse.Namespace) -> str:
    """Returns the data's hash, empty if the data is the newest of several folders.

    Raises:
        ConcordError: the arguments are wrong.
    """
    if args.wait and args.cron is not None:
        raise ConcordError("--wait: a schedule never ends, so it cannot be waited for. Leave out --wait or --cron.")
    if args.cron is not None and len(args.cron.split()) != 6:
        raise ConcordError(f"--cron {args.cron!r}: needs six fields, the first for seconds: '0 0 2 * * *'.")
    if args.max_concurrency < 1:
        raise ConcordError(f"--max-concurrency {args.max_concurrency}: must be at least 1.")
    try:
        location = parse_location(args.data_uri)
        if isinstance(location, Path):
            raise ValueError("pods cannot read a local folder; copy the data to s3://bucket/prefix")
    except ValueError as error:
        raise ConcordError(f"--data-uri: {error}.") from None
    if location.is_pattern:
        if args.data_hash is not None:
            raise ConcordError("--data-hash: the newest folder of --data-uri has a hash of its own. Leave it out.")
        return ""
    data_hash = dvc_file_hash(DATA_DVC_FILE) if args.data_hash is None else args.data_hash
    if not data_hash:
        raise ConcordError(
            "data.dvc is missing, so the data's hash is unknown. Run `dvc add data`, or set --data-hash."
        )
    return str(data_hash)


def pipeline_arguments(settings: Settings, experiment: str, data_uri: str, data_hash: str) -> dict[str, str]:
    """Returns a value for every input of the pipeline, so that a run shows all its settings, defaults included."""
    tree = settings.tree()
    sections = {section for step in STEPS.values() for section in step.sections}
    inputs = {"data_uri": data_uri, "data_hash": data_hash, "experiment": experiment}
    return inputs | {f"{section}_settings": json.dumps(tree[section]) for section in sorted(sections)}
