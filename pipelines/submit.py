"""`python -m pipelines submit`: submits the pipeline to a cluster, once or on a schedule.

The cluster: --host or KF_PIPELINES_ENDPOINT; without either, the cluster of this pod or of the current kubectl context.
The login: KF_PIPELINES_TOKEN (a bearer token), KF_PIPELINES_COOKIE (a session cookie), or KF_PIPELINES_SA_TOKEN_PATH (a
file with a service account's token, read again before it expires). Credentials are never printed.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.console import console
from components.errors import ConcordError
from components.s3_address import parse_location
from components.settings import Settings, load_settings
from components.shared.io.secrets import masked
from components.steps import STEPS
from pipelines.cluster_settings import load_cluster
from pipelines.compile import DATA_DVC_FILE, add_pipeline_arguments, chosen_image, compile_pipeline, dvc_file_hash

if TYPE_CHECKING:
    from kfp import Client

HOST = "KF_PIPELINES_ENDPOINT"
TOKEN = "KF_PIPELINES_TOKEN"
COOKIE = "KF_PIPELINES_COOKIE"
TOKEN_FILE = "KF_PIPELINES_SA_TOKEN_PATH"
FINAL_STATES = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
MAX_FAILED_POLLS = 10  # consecutive requests that may fail while a run is watched
REQUEST_TIMEOUT = 20  # seconds; an integer, since the API's client ignores a float


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_pipeline_arguments(sub)
    sub.add_argument(
        "--host", help=f"address of Kubeflow Pipelines (default: ${HOST}, or the cluster of this pod or of kubectl)"
    )
    sub.add_argument("--namespace", help="namespace of the runs, if Kubeflow has many users")
    sub.add_argument("--ca-cert", type=Path, help="CA file for the host's certificate")
    sub.add_argument("--data-uri", required=True, help="address of the raw input: s3://bucket/prefix")
    sub.add_argument("--data-hash", help="DVC's md5 of the raw input (default: the one in data.dvc)")
    sub.add_argument("--experiment", help="name on Kubeflow and in MLflow (default: experiment in the settings)")
    sub.add_argument("--run-name", help="name of the run (default: the experiment and the time)")
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
        compile_pipeline(settings, cluster, image, data_hash, package, args.cache == "on")
        with kubeflow_errors("reach the server"):
            client = connect(args)
        common = {
            "job_name": name,
            "pipeline_package_path": str(package),
            "params": pipeline_arguments(settings, experiment, args.data_uri, data_hash),
            "pipeline_root": cluster.pipeline_root,
            "enable_caching": None,  # use what was compiled: True would cache the steps that must always run
            "service_account": cluster.service_account,
        }
        with kubeflow_errors("submit the pipeline"):
            experiment_id = client.create_experiment(experiment, namespace=args.namespace).experiment_id
            if args.cron is not None:
                created_id = client.create_recurring_run(
                    experiment_id,
                    cron_expression=args.cron,
                    max_concurrency=args.max_concurrency,
                    no_catchup=not args.catch_up,
                    **common,
                ).recurring_run_id
            else:
                created_id = client.run_pipeline(experiment_id, **common).run_id
    kind, page = ("schedule", "recurringrun") if args.cron is not None else ("run", "runs")
    console.print(
        f"{kind} {name} of experiment {experiment}: {_link(args, page, created_id)}", markup=False, soft_wrap=True
    )
    print(created_id)
    sys.stdout.flush()
    if not args.wait:
        return 0
    try:
        return watch(client, created_id, args.poll, args.timeout)
    except KeyboardInterrupt:
        console.print(f"run {created_id} is no longer watched, but continues on the cluster", markup=False)
        raise


def _check_arguments(args: argparse.Namespace) -> str:
    """Returns the data's hash; raises ConcordError if the arguments are wrong."""
    if args.wait and args.cron is not None:
        raise ConcordError("--wait: a schedule never ends, so it cannot be waited for. Leave out --wait or --cron.")
    if args.cron is not None and len(args.cron.split()) != 6:
        raise ConcordError(f"--cron {args.cron!r}: needs six fields, the first for seconds: '0 0 2 * * *'.")
    if args.max_concurrency < 1:
        raise ConcordError(f"--max-concurrency {args.max_concurrency}: must be at least 1.")
    try:
        if isinstance(parse_location(args.data_uri), Path):
            raise ValueError("pods cannot read a local folder; copy the data to s3://bucket/prefix")
    except ValueError as error:
        raise ConcordError(f"--data-uri: {error}.") from None
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


def connect(args: argparse.Namespace) -> "Client":
    """Returns kfp's client. The host is asked first, because the client itself takes half a minute to report an error.

    Raises:
        ConcordError: nothing answers at the host, or it refuses the credentials.
    """
    import kfp

    host = args.host or os.environ.get(HOST)
    if host:
        if not host.startswith(("http://", "https://")):
            host = f"https://{host}"
        _check_host(host.rstrip("/"), args.ca_cert)
    elif os.environ.get(TOKEN):  # with a token, the client does not look for a cluster
        raise ConcordError(
            f"{TOKEN} is set, but no host is. Set --host or {HOST}, or unset {TOKEN} to use kubectl's login."
        )
    credentials = None
    if os.environ.get(TOKEN_FILE):
        credentials = kfp.client.ServiceAccountTokenVolumeCredentials(path=os.environ[TOKEN_FILE])
    client = kfp.Client(
        host=host,
        existing_token=os.environ.get(TOKEN) or None,
        cookies=os.environ.get(COOKIE) or None,
        credentials=credentials,
        ssl_ca_cert=str(args.ca_cert) if args.ca_cert else None,
    )
    _set_request_timeout(client)
    return client


def _set_request_timeout(client: "Client") -> None:
    """Sets a timeout for all requests, so that a host that never answers cannot block `--wait` for ever."""
    rest = client._run_api.api_client.rest_client  # shared by all of the client's APIs
    request = rest.request

    def request_with_timeout(*args: Any, _request_timeout: Any = None, **kwargs: Any) -> Any:
        return request(*args, _request_timeout=_request_timeout or REQUEST_TIMEOUT, **kwargs)

    rest.request = request_with_timeout


def _check_host(host: str, ca_cert: Path | None) -> None:
    """Raises ConcordError unless Kubeflow Pipelines answers at the host and accepts the credentials."""
    import requests

    headers = {}
    if os.environ.get(TOKEN):
        headers["Authorization"] = f"Bearer {os.environ[TOKEN]}"
    elif os.environ.get(TOKEN_FILE):
        headers["Authorization"] = f"Bearer {Path(os.environ[TOKEN_FILE]).read_text(encoding='utf-8').strip()}"
    if os.environ.get(COOKIE):
        headers["Cookie"] = os.environ[COOKIE]
    answer = requests.get(
        f"{host}/apis/v2beta1/healthz",
        headers=headers,
        timeout=REQUEST_TIMEOUT,
        verify=str(ca_cert) if ca_cert else True,
        allow_redirects=False,  # a redirect leads to a login page, which answers 200
    )
    if answer.status_code in (301, 302, 303, 307, 308, 401, 403):
        raise ConcordError(
            f"{host}: refuses the login ({answer.status_code}). Set {TOKEN}, {COOKIE} or {TOKEN_FILE}; if the session "
            "has expired, log in again."
        )
    if answer.status_code != 200 or "json" not in answer.headers.get("Content-Type", ""):
        raise ConcordError(
            f"{host}: Kubeflow Pipelines does not answer here ({answer.status_code}). Is a path missing (/pipeline)?"
        )


@contextlib.contextmanager
def kubeflow_errors(action: str) -> Iterator[None]:
    """Turns errors of kfp and of the network into a ConcordError without secrets, and suppresses what kfp prints."""
    import kfp_server_api
    import requests
    import urllib3

    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _logging_disabled():
            warnings.simplefilter("ignore")
            yield
    except kfp_server_api.ApiException as error:
        reason = f"{error.status} {error.reason}: {_message(error.body)}" if error.status else str(error.reason)
        raise ConcordError(f"Kubeflow Pipelines: could not {action}: {masked(reason)}") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, TimeoutError, OSError, ValueError) as error:
        reason = masked(str(error).strip().partition("\n")[0])[:300]
        raise ConcordError(f"Kubeflow Pipelines: could not {action}: {reason}. Check --host or {HOST}.") from None


@contextlib.contextmanager
def _logging_disabled() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _message(body: Any) -> str:
    """Extracts the message from the API's JSON, without the server's stack trace."""
    try:
        content = json.loads(body)
        return str(content.get("message") or content.get("error") or "")[:500]
    except (TypeError, ValueError, AttributeError):
        return str(body or "")[:200]


def _link(args: argparse.Namespace, page: str, created_id: str) -> str:
    host = args.host or os.environ.get(HOST)
    if not host:
        return created_id
    address = host if host.startswith(("http://", "https://")) else f"https://{host}"
    return f"{address.rstrip('/')}/#/{page}/details/{created_id}"


def watch(client: "Client", run_id: str, poll: float, hours: float | None) -> int:
    """Prints each change of a step's state until the run ends.

    Args:
        poll: seconds between two requests.
        hours: how long to watch; None for no limit.

    Returns:
        0; the run succeeded.

    Raises:
        ConcordError: the run did not succeed, did not end within `hours`, or too many requests in a row failed.
    """
    seen: dict[str, str] = {}
    end = None if hours is None else time.monotonic() + hours * 3600
    missed = 0
    while True:
        try:
            with kubeflow_errors(f"read the state of run {run_id}"):
                run = client.get_run(run_id)
            missed = 0
        except ConcordError as error:
            missed += 1
            if missed >= MAX_FAILED_POLLS or (end is not None and time.monotonic() > end):
                raise ConcordError(f"{error} The run continues, but is no longer watched.") from None
            time.sleep(poll)
            continue
        _print_changes(run, seen)
        if run.state in FINAL_STATES:
            return _report_end(run, seen)
        if end is not None and time.monotonic() > end:
            raise ConcordError(
                f"run {run_id}: still {run.state or 'PENDING'} after {hours:g} hours. The run continues, but is no "
                "longer watched."
            )
        time.sleep(poll)


def _print_changes(run: Any, seen: dict[str, str]) -> None:
    """Prints the states that differ from `seen` (task -> state), and updates `seen`."""
    for task, state in _states(run).items():
        if seen.get(task) != state:
            seen[task] = state
            console.print(f"{time.strftime('%H:%M:%S')}  {task}: {state}", markup=False)


def _states(run: Any) -> dict[str, str]:
    """Returns step -> state; Kubeflow's own tasks (drivers, the DAG itself) are left out."""
    titles = {step.title: step.name for step in STEPS.values()}
    named = {titles.get(task.display_name, task.display_name): task.state for task in _details(run)}
    return {name: state for name, state in named.items() if name in STEPS and state}


def _details(run: Any) -> list[Any]:
    return list((run.run_details.task_details if run.run_details else None) or [])


def _report_end(run: Any, seen: dict[str, str]) -> int:
    """Returns 0 if the run succeeded; raises ConcordError with the failed steps and their errors if not."""
    if run.state == "SUCCEEDED":
        console.print(f"run {run.run_id}: SUCCEEDED", markup=False)
        return 0
    failed = [name for name, state in seen.items() if state in ("FAILED", "CANCELED")]
    where = f" at {', '.join(failed)}" if failed else ""
    errors = [task.error.message for task in _details(run) if task.error and task.error.message]
    if run.error and run.error.message:
        errors.append(run.error.message)
    reasons = f": {masked('; '.join(dict.fromkeys(errors)))}" if errors else ""
    raise ConcordError(f"run {run.run_id}: {run.state}{where}{reasons}. The logs are on the run's page.")
