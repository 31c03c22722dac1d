"""`python -m components registry show|promote|rollback|export`: shows, changes and exports registered versions."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.commands.registry.details import details
from components.commands.registry.export import export
from components.commands.registry.push import check_push, push
from components.errors import ConcordError
from components.register.model_card import publish_card
from components.register.registry import PROMOTED, REASON, ROLLED_BACK, Registry
from components.settings import load_settings
from components.shared.io.secrets import masked
from components.shared.scoring.shots import GROUPS
from components.shared.tracking.connection import connect, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def main(arguments: Sequence[str]) -> None:
    """Promotes a version, rolls back to the previous champion, exports a version, or shows the versions.

    Raises:
        ConcordError: the model or the version does not exist, there is no previous champion, or the export fails.
    """
    args = parser().parse_args(arguments)
    name = args.model or load_settings(args.params).registered_model
    registry = Registry(connect(), name)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)
    versions = registry.versions()
    if not versions:
        raise ConcordError(
            f"{name}: no version in the registry at {masked(tracking_uri())}. Register one (make run), or name another "
            "model with --model."
        )
    if args.command == "promote":
        number = str(registry.version(args.version).version)
        previous = registry.promote(number, args.reason)
        publish_card(registry, number, f"promoted by hand: {args.reason}")
        replaced = f" and replaces version {previous}" if previous else ""
        console.print(f"{name}: version {number} is champion{replaced}")
    elif args.command == "rollback":
        current, previous = registry.rollback(args.reason)
        console.print(f"{name}: version {previous} is champion again and replaces version {current}")
    elif args.command == "export":
        if args.push:
            check_push(args.push)
        number = export(registry, args.version, args.out)
        console.print(f"{name}: version {number} is in {args.out}", markup=False, soft_wrap=True)
        if args.push:
            console.print(f"{args.out}: uploaded as {push(args.out, args.push)}", markup=False, soft_wrap=True)
    elif args.version:
        details(console, registry.version(args.version), _aliases(registry, args.version))
    else:
        _overview(console, registry, versions)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m components registry", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings that name the model (default: %(default)s)"
    )
    common.add_argument("--model", help="registered model (default: that of the params)")
    commands = top.add_subparsers(dest="command", required=True)
    promote = commands.add_parser("promote", parents=[common], help="make a version champion")
    promote.add_argument("--version", required=True, metavar="N", help="number of the version")
    promote.add_argument("--reason", required=True, help="stored with the version, your name and the time")
    rollback = commands.add_parser("rollback", parents=[common], help="make the previous champion the champion again")
    rollback.add_argument("--reason", default="rolled back by hand", help="stored likewise (default: %(default)s)")
    hand_over = commands.add_parser("export", parents=[common], help="write a version as a folder for the hub")
    hand_over.add_argument("--version", required=True, metavar="N", help="number or alias of the version")
    hand_over.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="must not exist, or be empty")
    hand_over.add_argument(
        "--push", metavar="ORG/NAME", help="upload the folder to this repository (token in HF_TOKEN)"
    )
    show = commands.add_parser("show", parents=[common], help="list versions with aliases, metrics, hashes and reasons")
    show.add_argument("--version", metavar="N", help="show one version with its ancestry and the promotion decision")
    return top


def _aliases(registry: Registry, number: str) -> list[str]:
    return [alias for alias, holder in sorted(registry.aliases().items()) if holder == number]


def _overview(console: Console, registry: Registry, versions: Sequence["ModelVersion"]) -> None:
    table = Table(title=registry.name, title_justify="left", expand=False)
    for head in ("version", "alias"):
        table.add_column(head, no_wrap=True)
    for group in GROUPS:
        table.add_column(f"MAE\n{group}", justify="right", no_wrap=True)
    for head in ("weights\ndata", "commit"):
        table.add_column(head, no_wrap=True)
    table.add_column("reason", ratio=1, min_width=40)
    for version in versions:
        tags = version.tags
        table.add_row(
            str(version.version),
            "\n".join(_aliases(registry, str(version.version))),
            *(_figure(tags.get(f"concord.mae.{group}")) for group in GROUPS),
            f"{tags.get('concord.in.grpo', '–')[:8]}\n{tags.get('concord.in.ingest', '–')[:8]}",
            tags.get("concord.git.commit", "–")[:8],
            Text(_history(tags) or tags.get(REASON, "–")),
        )
    console.print(table)


def _history(tags: dict[str, str]) -> str:
    """Returns the reason of the decision, and the last promotion or rollback."""
    lines = [tags[REASON]] if REASON in tags else []
    if f"{ROLLED_BACK}at" in tags:
        lines.append(
            f"rolled back to {tags[f'{ROLLED_BACK}to']} by {tags[f'{ROLLED_BACK}by']}, "
            f"{tags[f'{ROLLED_BACK}at']}: {tags[f'{ROLLED_BACK}why']}"
        )
    elif f"{PROMOTED}at" in tags:
        lines.append(f"champion since {tags[f'{PROMOTED}at']}, by {tags[f'{PROMOTED}by']}")
    return "\n".join(lines)


def _figure(text: str | None) -> str:
    return "–" if text in (None, "None") else f"{float(text):.2f}"
