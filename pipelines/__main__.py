"""`python -m pipelines`: the training pipeline on Kubeflow.

    python -m pipelines compile                                     # write the pipeline's YAML
    python -m pipelines run --data data --out artifacts/kubeflow    # run it in containers on this machine
    python -m pipelines check                                       # whether a cluster has what a run needs
    python -m pipelines submit --data-uri s3://bucket/data --wait   # run it on a cluster
    python -m pipelines lock --run RUN                              # write dvc.lock from a finished run
    python -m pipelines graph                                       # draw the pipeline
    python -m pipelines serve --version 3 --out serve.yaml          # write a KServe InferenceService for a version

Each command imports kfp only when it runs, so `--help` is fast.
"""

import argparse
import sys

from rich.text import Text

from components.console import console, print_anything, with_home
from components.errors import ConcordError
from components.shared.io.secrets import mask_output, masked
from pipelines import check, compile, graph, lock, run, serve, submit

# Each module has add_arguments(parser) and command(args) -> exit code.
COMMANDS = {
    "compile": (compile, "write the pipeline's YAML"),
    "run": (run, "run the pipeline in containers on this machine"),
    "check": (check, "check that a cluster has what a run needs"),
    "submit": (submit, "run the pipeline on a cluster, once or on a schedule"),
    "lock": (lock, "write dvc.lock from a finished run"),
    "graph": (graph, "draw the pipeline"),
    "serve": (serve, "write a KServe InferenceService for a registered version"),
}


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line, with one subcommand per module."""
    top = argparse.ArgumentParser(prog="python -m pipelines", description="The training pipeline on Kubeflow.")
    commands = top.add_subparsers(dest="command", required=True)
    for name, (module, help) in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=help))
    return top


def main(argv: list[str]) -> int:
    """Runs a command; returns 0 success, 1 reported error, 2 usage error, 75 a retry may help, 130 interrupted."""
    args = parser().parse_args(with_home(argv))
    try:
        code: int = COMMANDS[args.command][0].command(args)
        return code
    except ConcordError as error:
        console.print(Text.assemble(("error", "bold red"), f" {masked(str(error))}"), soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    print_anything()
    mask_output()
    sys.exit(main(sys.argv[1:]))
