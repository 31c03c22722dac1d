"""`python -m components STEP`: the one command that DVC, Kubeflow and people call.

    python -m components sft --params params.yaml --ingest artifacts/ingest --out artifacts/sft
    python -m components registry show

Steps load their libraries when they run, so that `--help` answers at once.
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rich.text import Text

from components.console import console, print_anything, with_home
from components.errors import ConcordError, RetryableError
from components.launcher import (
    ECHO_SECONDS,
    SECTION,
    check_variables,
    exit_with_launcher,
    leave,
    rank,
    started_by_launcher,
    world_size,
)
from components.runner import StepCall, run
from components.settings import load_settings
from components.shared.io.permissions import restrict_umask
from components.shared.io.progress import Work
from components.shared.io.secrets import mask_output, masked, masked_traceback
from components.shared.io.stop import exit_code, handle_stop_signals, stop_when_parent_dies
from components.shared.kubeflow.arguments import KubeflowArguments
from components.shared.kubeflow.names import RUN_ID
from components.shared.kubeflow.node import run_on_node, this_node
from components.shared.kubeflow.tries import TRY, Tries, run_tries
from components.steps import STEPS

IN_POD = "--executor-input"  # the flag that only Kubeflow sets

# Commands that are not steps: name -> module whose `main` gets the remaining words.
COMMANDS: Mapping[str, str] = {
    "ablation": "components.commands.ablation.command",
    "bench": "components.commands.bench.command",
    "data": "components.commands.data.command",
    "demo": "components.commands.demo.command",
    "init": "components.commands.init.command",
    "newest": "components.commands.newest",
    "predict": "components.commands.predict.command",
    "registry": "components.commands.registry.command",
    "serve": "components.commands.serve.command",
    "summary": "components.commands.summary",
}


def parser() -> argparse.ArgumentParser:
    """The command line: a subcommand for each step, a flag for each port."""
    top = argparse.ArgumentParser(prog="python -m components", description="Concord's pipeline, step by step.")
    commands = top.add_subparsers(dest="command", required=True, metavar="STEP")
    for step in STEPS.values():
        sub = commands.add_parser(step.name, help=step.title, allow_abbrev=False)
        sub.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
        for port, default in {**step.inputs, **step.outputs}.items():
            if port == "data":
                sub.add_argument("--data", help="folder or s3://bucket/prefix (default: ingest.path)")
                continue
            kind = "input" if port in step.inputs else "output"
            sub.add_argument(f"--{port}", type=Path, default=Path(default), help=f"{kind} (default: %(default)s)")
        if step.parallel:  # it trains
            sub.add_argument("--dry-run", action="store_true", help="report what one batch would need, and stop")
        sub.add_argument("--state", type=Path, default=Path(".checkpoints"), help=argparse.SUPPRESS)
        _add_kubeflow_flags(sub)
    for name in COMMANDS:
        commands.add_parser(name, help=f"see python -m components {name} --help", add_help=False)
    return top


def _add_kubeflow_flags(sub: argparse.ArgumentParser) -> None:
    """Flags that only the compiled pipeline uses (components/shared/kubeflow)."""
    sub.add_argument("--experiment", help=argparse.SUPPRESS)
    sub.add_argument("--section", nargs=2, action="append", default=[], help=argparse.SUPPRESS)
    sub.add_argument("--code", help=argparse.SUPPRESS)
    sub.add_argument("--data-hash", help=argparse.SUPPRESS)
    sub.add_argument(IN_POD, help=argparse.SUPPRESS)
    sub.add_argument("--page", type=Path, help=argparse.SUPPRESS)
    sub.add_argument("--pipeline-run", metavar="ID", default=os.environ.get(RUN_ID) or None, help=argparse.SUPPRESS)


def step_call(words: list[str]) -> StepCall | None:
    """The step and settings that the command line names; None after a dry run, which needs no more."""
    arguments = parser().parse_args(words)
    step, given = STEPS[arguments.command], vars(arguments)
    check_variables(step.parallel)
    sections = dict(arguments.section)
    if SECTION in os.environ:
        sections["launcher"] = os.environ[SECTION]
    if arguments.experiment is not None:
        sections["experiment"] = json.dumps(arguments.experiment)
    settings = load_settings(arguments.params, sections)
    if given.get("dry_run"):
        from components.commands.dry_run.command import dry_run

        if rank() == 0:
            dry_run(step.name, settings, given["ingest"])
        return None
    kubeflow = None
    if arguments.executor_input is not None:
        kubeflow = KubeflowArguments(arguments.executor_input, arguments.pipeline_run, arguments.code, arguments.page)
    return StepCall(
        step,
        settings,
        inputs={port: given[port] for port in step.inputs if port != "data"},
        outputs={port: given[port] for port in step.outputs},
        state=arguments.state,
        words=tuple(words),
        data=given.get("data"),
        data_hash=arguments.data_hash,
        kubeflow=kubeflow,
        params=None if arguments.section else arguments.params,
    )


def main(words: list[str]) -> int:
    """Runs a command; `~/` at the start of a word or of a flag's value is the home folder.

    Returns:
        0 success, 1 error, 2 usage error, 75 an error that may not occur again, 130 Ctrl-C, 143 `kill`, 129 a closed
        terminal.
    """
    words = with_home(words)
    try:
        if words[:1] == ["register"] and words[1:2] and not words[1].startswith("-"):
            raise ConcordError(f"register {words[1]}: this is now python -m components registry {' '.join(words[1:])}")
        if words and words[0] in COMMANDS:
            return importlib.import_module(COMMANDS[words[0]]).main(words[1:]) or 0
        call = step_call(words)
        if call is None:
            return 0
        with Work(call.step.name):
            node = this_node()
            return run_on_node(node, lambda: run(call)) if node else run(call)
    except KeyboardInterrupt as stop:
        if rank() == 0:
            with suppress(OSError):  # the terminal may be gone
                console.print("stopped; the next run resumes from here")
        return exit_code(stop)
    except Exception as error:
        try:
            return _reported(error)
        except KeyboardInterrupt as stop:  # the launcher ends this rank, whose error another one has reported
            return exit_code(stop)


def in_pod(words: list[str]) -> int:
    """Runs the step in a child process, and again where a retry may help; returns the exit code."""
    try:
        return run_tries(words[0], [sys.executable, "-m", "components", *words], Tries.from_environment())
    except ConcordError as error:
        return _reported(error)


def _reported(error: Exception) -> int:
    """Prints an error and returns the exit code; raises it if it is unexpected and this is the only process.

    A rank waits before: the launcher ends it meanwhile if it only echoes the error of another rank.
    """
    from components.shared.io.transient import is_transient

    message = _message(error)
    if message is None:
        code = RetryableError.exit_code if is_transient(error) else 1
        if world_size() == 1 and code == 1:
            raise error
        if world_size() > 1:
            time.sleep(ECHO_SECONDS)
        sys.stderr.write(masked_traceback(error))
        return code
    if rank() > 0:
        time.sleep(ECHO_SECONDS)
    console.print(Text.assemble(("error", "bold red"), f" {message}"), soft_wrap=True)
    return error.exit_code if isinstance(error, ConcordError) else 1


def _message(error: Exception) -> str | None:
    """What to report of a known error; None for an unexpected one, which gets a traceback."""
    from components.shared.io.disk_full import disk_full_message, is_disk_full
    from components.shared.io.permissions import denied_message
    from components.shared.io.text import printable

    if isinstance(error, ConcordError):
        return printable(masked(str(error)))
    known = disk_full_message(Path().absolute()) if is_disk_full(Path(), error) else denied_message(error)
    return known and printable(known)


if __name__ == "__main__":
    print_anything()
    mask_output()
    handle_stop_signals()
    if IN_POD in sys.argv and TRY not in os.environ and "WORLD_SIZE" not in os.environ:
        restrict_umask()
        sys.exit(in_pod(sys.argv[1:]))
    exit_with_launcher()
    if ("DVC_STAGE" in os.environ or TRY in os.environ) and not started_by_launcher():
        stop_when_parent_dies()  # `kill` ends DVC without a word to its stages
    leave(main(sys.argv[1:]))
