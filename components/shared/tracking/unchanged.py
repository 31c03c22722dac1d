"""Compares the params, inputs and code of a step at its end with those at its start.

DVC hashes them after the command has ended. Without the comparison, dvc.lock would give the outputs params, inputs or
code that came later.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from components.errors import ConcordError
from components.settings import Settings
from components.shared.tracking.flatten import flatten
from components.shared.tracking.hashes import Content
from components.shared.tracking.lineage import Lineage, compute_lineage
from components.steps import Step


def changes(before: Lineage, step: Step, settings: Settings, inputs: Mapping[str, Path]) -> list[str]:
    """Describes each difference between `before` and now; of the inputs, only what seems to have changed is read again.

    Args:
        before: of the step's start.
        settings, inputs: as they are now.
    """
    try:
        now = compute_lineage(step, settings, inputs)
    except (ConcordError, OSError) as error:  # something was removed, perhaps while it was read
        return [str(error)]
    old, new = flatten(before.params), flatten(now.params)
    params = [
        f"params {name}: {old.get(name, 'nothing')!r} at the start, {new.get(name, 'nothing')!r} now"
        for name in sorted({*old, *new})
        if name not in old or name not in new or old[name] != new[name]
    ]
    return [
        *params,
        *_contents("input", before.inputs, now.inputs, inputs),
        *_contents("code", before.code, now.code, {name: Path(name) for name in now.code}),
    ]


def _contents(
    kind: str, before: Mapping[str, Content], now: Mapping[str, Content], paths: Mapping[str, Path]
) -> Iterator[str]:
    for name, content in now.items():
        if name not in before or before[name].md5 != content.md5:
            yield f"{kind} {paths[name]}: another content (hash {content.md5})"
