"""`python -m components STEP`: the one command that DVC, Kubeflow and a person call.

    python -m components sft --params params.yaml --ingest artifacts/ingest --out artifacts/sft
    python -m components register show

Steps load their libraries when they run, so that `--help` answers at once.
"""

import argparse
import importlib
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from components.launcher import HEAD_START, SECTION, end_with_launcher, launch, leave, rank, to_launch, world_size
from components.settings import Settings, load_settings
from components.shared.data.exclusive import alone, exclusive
from components.shared.data.s3_address import parse_location
from components.shared.errors import ConcordError
from components.shared.kubeflow.names import REPORT_PAGE, RUN_ID
from components.steps import STEPS, Step, metrics_file

if TYPE_CHECKING:
    from components.shared.kubeflow.task import Task
    from components.shared.tracking.lineage import Lineage

console = Console(stderr=True, highlight=False)

# Commands that are not steps: module and function, which gets the remaining words.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "ablation": ("components.ablation.command", "main"),
    "bench": ("components.bench.command", "main"),
    "data": ("components.ingest.data_command", "main"),
    "summary": ("components.evaluate.summary", "main"),
}


def run_step(
    step: Step,
    settings: Settings,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    state: Path,
    task: "Task | None" = None,
) -> None:
    """Runs one step: opens its MLflow run, does the work, stamps what came out.

    On many ranks all do the work, and the rest is rank 0's.

    Args:
        settings: the whole experiment.
        inputs, outputs: port name -> path.
        state: folder for training state that outlives a kill; only steps that resume use it.
        task: of Kubeflow, where it runs the step; it may know the outputs already, takes them to the DVC remote, and is
            told of them.

    Raises:
        ConcordError: the step reports an error; earlier outputs are whole.
    """
    from components.shared.tracking.lineage import lineage_of
    from components.shared.tracking.runs import step_run

    work: Callable[..., None] = importlib.import_module(f"components.{step.name}.step").run
    ports = {**inputs, **outputs, **({"state": state / step.name} if step.resumes else {})}
    if rank() > 0:
        work(settings, None, **ports)
        return
    console.rule(f"[bold]{step.name}[/]  {step.title}", align="left")
    with exclusive(outputs["out"]):
        start = time.monotonic()
        lineage = task.lineage if task else lineage_of(step, settings, inputs)
        pipeline_run = task.pipeline_run if task else None
        trains = step.resumes and not (task and task.made)
        with (
            _alone_at(step, lineage, state) if trains else nullcontext(),
            step_run(step, settings, inputs, lineage, pipeline_run) as tracked,
        ):
            if task and task.made:
                task.show(tracked, outputs)
            else:
                work(settings, tracked, **ports)
            metrics = json.loads(metrics_file(outputs["out"]).read_text(encoding="utf-8"))
            tracked.finish(metrics, outputs)
            if task:
                task.push(tracked, outputs)
        if task:
            task.report(tracked, outputs)
    places = ", ".join(str(path) for path in outputs.values())
    console.print(f"[green]{step.name} done[/] in {time.monotonic() - start:.0f} s: {places}")


def _alone_at(step: Step, lineage: "Lineage", state: Path) -> AbstractContextManager[None]:
    """Nobody else trains the very same on the same training state, which a volume may share between machines.

    Nothing is held where the code is not known. Trainings that differ have training state of their own.
    """
    if lineage.key is None:
        return nullcontext()
    return alone(state / f".{step.name}-{lineage.key[:16]}.lock", f"the same {step.name}")


def check_inputs(step: Step, inputs: Mapping[str, Path], executor_input: str | None = None) -> None:
    """Checks that every input exists.

    Args:
        executor_input: Kubeflow's, if it runs the step.

    Raises:
        ConcordError: an input is missing. The remedy fits where the step runs: a pod has no `make`.
    """
    for port, path in inputs.items():
        if path.exists():
            continue
        if executor_input is not None:
            from components.shared.kubeflow.executor import missing_input

            raise missing_input(step, port, path, executor_input)
        maker = f"python -m components {port}" if port in STEPS else f"make data, or put the raw input in {path}/"
        raise ConcordError(f"{path}: missing, and {step.name} reads it. Make it first: {maker}")


def parser() -> argparse.ArgumentParser:
    """The command line: a subcommand a step, a flag a port."""
    top = argparse.ArgumentParser(prog="python -m components", description="Concord's pipeline, step by step.")
    commands = top.add_subparsers(dest="command", required=True, metavar="STEP")
    for step in STEPS.values():
        sub = commands.add_parser(step.name, help=step.title, allow_abbrev=False)
        sub.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
        for port, default in {**step.inputs, **step.outputs}.items():
            if port == "data":
                sub.add_argument("--data", help="folder or s3://bucket/prefix (default: ingest.path)")
                sub.add_argument("--data-hash", help=argparse.SUPPRESS)  # Kubeflow's
                continue
            kind = "input" if port in step.inputs else "output"
            sub.add_argument(f"--{port}", type=Path, default=Path(default), help=f"{kind} (default: %(default)s)")
        if step.parallel:  # it trains
            sub.add_argument("--dry-run", action="store_true", help="say what one batch would need, no more")
        sub.add_argument("--state", type=Path, default=Path(".checkpoints"), help=argparse.SUPPRESS)
        _kubeflow_flags(sub)
    for name in COMMANDS:
        commands.add_parser(name, help=f"see python -m components {name} --help", add_help=False)
    return top


def _kubeflow_flags(sub: argparse.ArgumentParser) -> None:
    """What only the compiled pipeline says (components/shared/kubeflow): settings as inputs, and where to report."""
    sub.add_argument("--experiment", help=argparse.SUPPRESS)
    sub.add_argument("--section", nargs=2, action="append", default=[], help=argparse.SUPPRESS)
    sub.add_argument("--code", help=argparse.SUPPRESS)
    sub.add_argument("--executor-input", help=argparse.SUPPRESS)
    sub.add_argument("--page", type=Path, help=argparse.SUPPRESS)
    sub.add_argument("--pipeline-run", metavar="ID", default=os.environ.get(RUN_ID) or None, help=argparse.SUPPRESS)


def step_command(words: list[str]) -> int:
    """Runs the step that the command line names, on as many ranks as the settings say, and tells Kubeflow of it.

    Returns:
        The exit code.
    """
    arguments = parser().parse_args(words)
    step, given = STEPS[arguments.command], vars(arguments)
    sections = dict(arguments.section)
    if SECTION in os.environ:
        sections["launcher"] = os.environ[SECTION]
    if arguments.experiment is not None:
        sections["experiment"] = json.dumps(arguments.experiment)
    settings = load_settings(arguments.params, sections)
    if given.get("dry_run"):
        from components.dry_run.command import dry_run

        if rank() == 0:
            dry_run(step.name, settings, given["ingest"])
        return 0
    outputs = {port: given[port] for port in step.outputs}
    if world_size() > 1 and not step.parallel:
        raise ConcordError(
            f"{step.name}: runs as one process, and {world_size()} were started. Call it without a launcher."
        )
    with _inputs(step, settings, given) as inputs:
        return _run_or_launch(step, settings, arguments, inputs, outputs, words)


@contextmanager
def _inputs(step: Step, settings: Settings, given: Mapping[str, Any]) -> Iterator[dict[str, Path]]:
    """Port name -> path; raw input that lies in a bucket is fetched, and stays as it is while the block lasts."""
    paths = {port: given[port] for port in step.inputs if port != "data"}
    if "data" not in step.inputs:
        yield paths
        return
    try:
        location = parse_location(given.get("data") or settings.ingest.path)
    except ValueError as error:
        raise ConcordError(f"--data: {error}.") from None
    if isinstance(location, Path):
        yield {"data": location, **paths}
        return
    from components.shared.data.s3 import local_copy

    with local_copy(location) as folder:
        yield {"data": folder, **paths}


def _run_or_launch(
    step: Step,
    settings: Settings,
    arguments: argparse.Namespace,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    words: list[str],
) -> int:
    check_inputs(step, inputs, arguments.executor_input)
    task = None
    if arguments.executor_input is not None and rank() == 0:
        from components.shared.kubeflow.task import Task

        task = Task.of(step, settings, inputs, arguments.executor_input, arguments.pipeline_run, arguments.code)
    if (expected := vars(arguments).get("data_hash")) is not None:
        _check_data(inputs["data"], expected, task)
    if task and "WORLD_SIZE" not in os.environ:  # ranks that others started must all do the same
        with exclusive(outputs["out"]):
            task.look_for(outputs)
    if step.parallel and to_launch(settings.launcher) and not (task and task.made):
        with exclusive(outputs["out"]):
            pass  # nobody else is at it; the ranks, once they are up, do not wait for ever
        return launch(settings.launcher, words)
    run_step(step, settings, inputs, outputs, arguments.state, task)
    if arguments.page is not None:
        arguments.page.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(outputs["report"] / REPORT_PAGE, arguments.page)
    return 0


def _check_data(data: Path, expected: str, task: "Task | None") -> None:
    """Raises ConcordError where the raw input is another than the pipeline says."""
    if task:
        found = task.lineage.inputs["data"].md5
    else:
        from components.shared.tracking.hashes import dvc_hash

        found = dvc_hash(data)
    if found != expected:
        raise ConcordError(
            f"{data}: its hash is {found}, and the pipeline's data_hash says {expected!r}. "
            "Give the hash of the data that data_uri names: else an old result could be taken for this data's."
        )


def main(words: list[str]) -> int:
    """Exit code: 0 done, 1 a fault told in words, 2 a wrong command line."""
    try:
        command = COMMANDS.get(words[0]) if words else None
        if words[:1] == ["register"] and words[1:] and not words[1].startswith("-"):
            command = ("components.register.command", "main")  # register promote | rollback | show
        if command:
            module, function = command
            getattr(importlib.import_module(module), function)(words[1:])
            return 0
        return step_command(words)
    except KeyboardInterrupt:
        if rank() == 0:
            console.print("stopped; the next run goes on from here")
        return 130
    except Exception as error:
        message = _in_words(error)
        if message is None:
            if world_size() == 1:
                raise
            time.sleep(HEAD_START)  # where it is only that a peer has gone, this rank is ended now, and says nothing
            traceback.print_exc()
            return 1
        if rank() > 0:
            time.sleep(HEAD_START)  # the same error on rank 0 is told there
        console.print(Text.assemble(("error", "bold red"), f" {message}"), soft_wrap=True)
        return 1


def _in_words(error: Exception) -> str | None:
    """What a person is told of a fault that is known; None for any other."""
    from components.shared.data.space import full_disk, no_space

    if not isinstance(error, ConcordError) and not no_space(Path(), error):
        return None
    message = str(error) if isinstance(error, ConcordError) else full_disk(Path().absolute())
    # Text, not markup: names and values from files may hold brackets, colons and control characters.
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in message)


if __name__ == "__main__":
    end_with_launcher()
    leave(main(sys.argv[1:]))
