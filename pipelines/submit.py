"""`python -m pipelines submit`: the pipeline on a cluster, once or by a schedule.

Where the cluster is: --host or KF_PIPELINES_ENDPOINT; without either, the cluster of this pod or of the current kubectl
context. Who one is: KF_PIPELINES_TOKEN (a bearer token), KF_PIPELINES_COOKIE (a session's), or
KF_PIPELINES_SA_TOKEN_PATH (a file with a service account's token, read again when it is due). None is ever printed.
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
from components.settings import Settings, load_settings
from components.shared.io.secrets import masked
from components.shared.s3.address import parse_location
from components.steps import STEPS
from pipelines.cluster_settings import load_cluster
from pipelines.compile import POINTER, add_pipeline_arguments, chosen_image, compile_pipeline, pointer_hash

if TYPE_CHECKING:
    from kfp import Client

HOST = "KF_PIPELINES_ENDPOINT"
TOKEN = "KF_PIPELINES_TOKEN"
COOKIE = "KF_PIPELINES_COOKIE"
TOKEN_FILE = "KF_PIPELINES_SA_TOKEN_PATH"
ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
MAX_FAILED_POLLS = 10  # requests in a row that may fail while a run is watched
SECOND_LIMIT = 20  # of one request; an integer, or the API's client takes no heed of it


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """The command's own words."""
    add_pipeline_arguments(sub)
    sub.add_argument(
        "--host", help=f"Kubeflow Pipelines' address (default: ${HOST}, or this pod's or kubectl's cluster)"
    )
    sub.add_argument("--namespace", help="of the runs, where Kubeflow has many users")
    sub.add_argument("--ca-cert", type=Path, help="CA file of the host's certificate")
    sub.add_argument("--data-uri", required=True, help="where the cluster finds the raw input: s3://bucket/prefix")
    sub.add_argument("--data-hash", help="DVC's md5 of the raw input (default: the one in data.dvc)")
    sub.add_argument("--experiment", help="on Kubeflow and in MLflow (default: experiment in the settings)")
    sub.add_argument("--run-name", help="(default: the experiment and the time)")
    sub.add_argument("--wait", action="store_true", help="show the steps' states, and end when the run ends")
    sub.add_argument("--timeout", type=float, metavar="HOURS", help="of --wait (default: none)")
    sub.add_argument("--poll", type=float, default=10.0, metavar="SECONDS", help="of --wait (default: %(default)g)")
    sub.add_argument("--cron", help='a schedule in place of a run, six fields from seconds on: "0 0 2 * * *"')
    sub.add_argument("--max-concurrency", type=int, default=1, help="--cron: runs at once (default: %(default)s)")
    sub.add_argument("--catch-up", action="store_true", help="--cron: make up for times that were missed")


def command(given: argparse.Namespace) -> int:
    """Submits, and prints the run's or the schedule's id alone on stdout.

    Returns:
        0: submitted, and with --wait succeeded. 1: the run failed or was not seen to end.

    Raises:
        ConcordError: the words contradict each other, or the host cannot be reached or refuses.
    """
    settings, cluster = load_settings(given.params), load_cluster(given.cluster)
    data_hash = _checked(given)
    experiment = given.experiment or settings.experiment
    name = given.run_name or f"{experiment} {time.strftime('%Y-%m-%d %H:%M:%S')}"
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        image = chosen_image(given.image, cluster)
        compile_pipeline(settings, cluster, image, data_hash, package, given.cache == "on")
        with kubeflow_errors("reach it"):
            client = connect(given)
        common = {
            "job_name": name,
            "pipeline_package_path": str(package),
            "params": arguments(settings, experiment, given.data_uri, data_hash),
            "pipeline_root": cluster.pipeline_root,
            "enable_caching": None,  # as it is compiled: True would cache the step that must always run
            "service_account": cluster.service_account,
        }
        with kubeflow_errors("submit the pipeline"):
            owner = client.create_experiment(experiment, namespace=given.namespace).experiment_id
            if given.cron is not None:
                made = client.create_recurring_run(
                    owner,
                    cron_expression=given.cron,
                    max_concurrency=given.max_concurrency,
                    no_catchup=not given.catch_up,
                    **common,
                ).recurring_run_id
            else:
                made = client.run_pipeline(owner, **common).run_id
    kind, page = ("schedule", "recurringrun") if given.cron is not None else ("run", "runs")
    console.print(f"{kind} {name} of experiment {experiment}: {_link(given, page, made)}", markup=False, soft_wrap=True)
    print(made)
    sys.stdout.flush()
    if not given.wait:
        return 0
    try:
        return watch(client, made, given.poll, given.timeout)
    except KeyboardInterrupt:
        console.print(f"run {made} goes on unwatched", markup=False)
        raise


def _checked(given: argparse.Namespace) -> str:
    """The data's hash; raises ConcordError where the words make no sense."""
    if given.wait and given.cron is not None:
        raise ConcordError("--wait: a schedule has no end. Leave out --wait or --cron.")
    if given.cron is not None and len(given.cron.split()) != 6:
        raise ConcordError(f"--cron {given.cron!r}: six fields are needed, the first for seconds: '0 0 2 * * *'.")
    if given.max_concurrency < 1:
        raise ConcordError(f"--max-concurrency {given.max_concurrency}: at least 1.")
    try:
        if isinstance(parse_location(given.data_uri), Path):
            raise ValueError("no pod reads a local folder; copy the data to s3://bucket/prefix")
    except ValueError as error:
        raise ConcordError(f"--data-uri: {error}.") from None
    data_hash = pointer_hash(POINTER) if given.data_hash is None else given.data_hash
    if not data_hash:
        raise ConcordError("data.dvc is missing, so the data's hash is not known: dvc add data, or give --data-hash.")
    return str(data_hash)


def arguments(settings: Settings, experiment: str, data_uri: str, data_hash: str) -> dict[str, str]:
    """The pipeline's inputs, each said, so that a run shows its settings whatever the defaults are."""
    tree = settings.tree()
    sections = {section for step in STEPS.values() for section in step.sections}
    inputs = {"data_uri": data_uri, "data_hash": data_hash, "experiment": experiment}
    return inputs | {f"{section}_settings": json.dumps(tree[section]) for section in sorted(sections)}


def connect(given: argparse.Namespace) -> "Client":
    """kfp's client, once the host has answered: by itself the client tries for half a minute before it says no.

    Raises:
        ConcordError: nothing answers there, or it refuses the credentials.
    """
    import kfp

    host = given.host or os.environ.get(HOST)
    if host:
        if not host.startswith(("http://", "https://")):
            host = f"https://{host}"
        _answers(host.rstrip("/"), given.ca_cert)
    elif os.environ.get(TOKEN):  # with it the client looks for no cluster
        raise ConcordError(f"{TOKEN} is set and no host: give --host or {HOST}, or unset it to use kubectl's login.")
    credentials = None
    if os.environ.get(TOKEN_FILE):
        credentials = kfp.client.ServiceAccountTokenVolumeCredentials(path=os.environ[TOKEN_FILE])
    client = kfp.Client(
        host=host,
        existing_token=os.environ.get(TOKEN) or None,
        cookies=os.environ.get(COOKIE) or None,
        credentials=credentials,
        ssl_ca_cert=str(given.ca_cert) if given.ca_cert else None,
    )
    _limit(client)
    return client


def _limit(client: "Client") -> None:
    """A host that takes a request and never answers fails it, in place of holding `--wait` for ever."""
    rest = client._run_api.api_client.rest_client  # one for all of the client's APIs
    request = rest.request

    def limited(*words: Any, _request_timeout: Any = None, **named: Any) -> Any:
        return request(*words, _request_timeout=_request_timeout or SECOND_LIMIT, **named)

    rest.request = limited


def _answers(host: str, ca_cert: Path | None) -> None:
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
        timeout=SECOND_LIMIT,
        verify=str(ca_cert) if ca_cert else True,
        allow_redirects=False,  # to a login page, which would look like an answer
    )
    if answer.status_code in (301, 302, 303, 307, 308, 401, 403):
        raise ConcordError(
            f"{host}: does not let you in ({answer.status_code}). Set {TOKEN}, {COOKIE} or {TOKEN_FILE}; a session "
            "that has ended must be begun anew."
        )
    if answer.status_code != 200 or "json" not in answer.headers.get("Content-Type", ""):
        raise ConcordError(
            f"{host}: no Kubeflow Pipelines there ({answer.status_code}). Is a path missing (/pipeline)?"
        )


@contextlib.contextmanager
def kubeflow_errors(action: str) -> Iterator[None]:
    """Turns kfp's and the network's errors into one sentence without a secret, and keeps kfp's own prints away."""
    import kfp_server_api
    import requests
    import urllib3

    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _silent():
            warnings.simplefilter("ignore")
            yield
    except kfp_server_api.ApiException as error:
        reason = f"{error.status} {error.reason}: {_message(error.body)}" if error.status else str(error.reason)
        raise ConcordError(f"Kubeflow Pipelines: could not {action}: {masked(reason)}") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, TimeoutError, OSError, ValueError) as error:
        reason = masked(str(error).strip().partition("\n")[0])[:300]
        raise ConcordError(f"Kubeflow Pipelines: could not {action}: {reason}. Check --host or {HOST}.") from None


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _message(body: Any) -> str:
    """What the API says in its JSON, without the stack of its server."""
    try:
        content = json.loads(body)
        return str(content.get("message") or content.get("error") or "")[:500]
    except (TypeError, ValueError, AttributeError):
        return str(body or "")[:200]


def _link(given: argparse.Namespace, page: str, made: str) -> str:
    host = given.host or os.environ.get(HOST)
    if not host:
        return made
    place = host if host.startswith(("http://", "https://")) else f"https://{host}"
    return f"{place.rstrip('/')}/#/{page}/details/{made}"


def watch(client: "Client", run_id: str, poll: float, hours: float | None) -> int:
    """Prints each change of a step's state until the run ends.

    Returns:
        0 for a run that succeeded.

    Raises:
        ConcordError: the run did not succeed, the time is over, or the host is away for too long.
    """
    seen: dict[str, str] = {}
    end = None if hours is None else time.monotonic() + hours * 3600
    missed = 0
    while True:
        try:
            with kubeflow_errors(f"follow run {run_id}"):
                run = client.get_run(run_id)
            missed = 0
        except ConcordError as error:
            missed += 1
            if missed >= MAX_FAILED_POLLS or (end is not None and time.monotonic() > end):
                raise ConcordError(f"{error} The run goes on without being watched.") from None
            time.sleep(poll)
            continue
        _show(run, seen)
        if run.state in ENDED:
            return _ended(run, seen)
        if end is not None and time.monotonic() > end:
            raise ConcordError(
                f"run {run_id}: still {run.state or 'PENDING'} after {hours:g} hours; it goes on unwatched."
            )
        time.sleep(poll)


def _show(run: Any, seen: dict[str, str]) -> None:
    """Prints what has changed since; `seen`, task -> state, is brought up to date."""
    for task, state in _states(run).items():
        if seen.get(task) != state:
            seen[task] = state
            console.print(f"{time.strftime('%H:%M:%S')}  {task}: {state}", markup=False)


def _states(run: Any) -> dict[str, str]:
    """Task -> state, of the steps; the platform's own tasks (drivers, the DAG itself) are left out."""
    titles = {step.title: step.name for step in STEPS.values()}
    named = {titles.get(task.display_name, task.display_name): task.state for task in _details(run)}
    return {name: state for name, state in named.items() if name in STEPS and state}


def _details(run: Any) -> list[Any]:
    return list((run.run_details.task_details if run.run_details else None) or [])


def _ended(run: Any, seen: dict[str, str]) -> int:
    if run.state == "SUCCEEDED":
        console.print(f"run {run.run_id}: SUCCEEDED", markup=False)
        return 0
    bad = [name for name, state in seen.items() if state in ("FAILED", "CANCELED")]
    where = f" at {', '.join(bad)}" if bad else ""
    errors = [task.error.message for task in _details(run) if task.error and task.error.message]
    if run.error and run.error.message:
        errors.append(run.error.message)
    why = f": {masked('; '.join(dict.fromkeys(errors)))}" if errors else ""
    raise ConcordError(f"run {run.run_id}: {run.state}{where}{why}. The logs are on the run's page.")
