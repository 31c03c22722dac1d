"""`python -m pipelines`: the training pipeline on Kubeflow.

    python -m pipelines compile                                     # the pipeline's YAML
    python -m pipelines run --data data --out artifacts/kubeflow    # in containers, on this machine
    python -m pipelines submit --data-uri s3://bucket/data --wait   # on a cluster
    python -m pipelines lock --run RUN                              # dvc.lock from a finished run
    python -m pipelines graph                                       # the pipeline's picture

kfp is loaded by the command that needs it, so that `--help` answers at once.
"""

import argparse
import sys

from rich.text import Text

from components.console import console
from components.errors import ConcordError
from pipelines import compile, graph, lock, run, submit

# Each has add_arguments(parser) and command(arguments) -> exit code.
COMMANDS = {
    "compile": (compile, "write the pipeline's YAML"),
    "run": (run, "run it here, in containers"),
    "submit": (submit, "run it on a cluster, once or by a schedule"),
    "lock": (lock, "write dvc.lock from a finished run"),
    "graph": (graph, "draw it"),
}


def parser() -> argparse.ArgumentParser:
    """The command line: a subcommand a file."""
    top = argparse.ArgumentParser(prog="python -m pipelines", description="The training pipeline on Kubeflow.")
    commands = top.add_subparsers(dest="command", required=True)
    for name, (module, help) in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=help))
    return top


def main(words: list[str]) -> int:
    """Exit code: 0 done, 1 a fault told in words, 2 a wrong command line, 130 broken off."""
    given = parser().parse_args(words)
    try:
        code: int = COMMANDS[given.command][0].command(given)
        return code
    except ConcordError as error:
        console.print(Text.assemble(("error", "bold red"), f" {error}"), soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
