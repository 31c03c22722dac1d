"""Where a version comes from: each step's run, back to the raw data, by the DVC hashes of what one made for the next.

It is written on the version as tags, one a step, so that it outlives the runs.
"""

import json
from collections.abc import Mapping
from typing import Any

from components.errors import ConcordError
from components.shared.tracking.step_run import PIPELINE_RUN, Record, StepRun, record_of, run_that_gave
from components.steps import STEPS

ANCESTOR = "concord.step."  # tag of a version; the step's name follows
DATA = "concord.data"  # DVC hash of the raw data


def trace(track: StepRun) -> dict[str, Record]:
    """Step name -> the record of the run that gave what the next ones took; a run that is not known is left out.

    Those below this run's own parent come first: another run may have made the very same from other settings.

    Raises:
        ConcordError: the store is away.
    """
    found: dict[str, Record] = {}
    waiting = dict(track.inputs)
    while waiting:
        name, digest = waiting.popitem()
        if name in found or name not in STEPS:
            continue
        run_id = run_that_gave(track, name, digest)
        if run_id is None:
            continue
        try:
            found[name] = record_of(track.client, track.client.get_run(run_id))
        except ConcordError:  # of a version of the step that left none
            continue
        waiting |= {port: content.md5 for port, content in found[name].lineage.inputs.items()}
    own = Record(track.run_id, track.commit, track.dirty, "", track.lineage, {})
    return {name: found[name] for name in STEPS if name in found} | {track.lineage.step: own}


def ancestry_tags(track: StepRun, ancestors: Mapping[str, Record]) -> dict[str, str]:
    """The tags that tell of it."""
    tags = {f"{ANCESTOR}{name}": json.dumps(_told(record)) for name, record in ancestors.items()}
    if "ingest" in ancestors:
        tags[DATA] = ancestors["ingest"].lineage.inputs["data"].md5
    if track.pipeline_run:
        tags[PIPELINE_RUN] = track.pipeline_run
    return tags


def params_of_all(ancestors: Mapping[str, Record]) -> dict[str, Any]:
    """Section -> settings, as each step saw them: a step in a container has those of its own sections alone."""
    sections: dict[str, Any] = {}
    for record in ancestors.values():
        sections |= record.lineage.params
    return sections


def _told(record: Record) -> dict[str, Any]:
    return {
        "run": record.run_id,
        "commit": record.commit,
        "dirty": record.dirty,
        "code": record.lineage.code_mark,
        "reused": record.reused,
        "in": {port: content.to_json() for port, content in record.lineage.inputs.items()},
        "out": {port: content.to_json() for port, content in record.outputs.items()},
    }
