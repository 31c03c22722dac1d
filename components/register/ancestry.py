"""Traces the ancestry of a model version: the run of each step back to the raw data, linked by DVC hashes.

The ancestry is stored as tags of the version, one for each step, so that it remains when the runs are deleted.
"""

import json
from collections.abc import Mapping
from typing import Any

from components.errors import ConcordError, RetryableError
from components.shared.tracking.past_runs import RunRecord, find_producer_in_pipeline, read_record
from components.shared.tracking.step_run import StepRun
from components.shared.tracking.tags import PIPELINE_RUN
from components.steps import STEPS

ANCESTOR = "concord.step."  # + step name: tag of a version with the record of that step's run
DATA = "concord.data"  # tag of a version: DVC hash of the raw data


def trace_ancestry(track: StepRun) -> dict[str, RunRecord]:
    """Returns step name -> record of the run that wrote the input of the next step; unknown runs are left out.

    Runs below the parent of `track` are preferred, because another pipeline run may have written the same output with
    other settings.

    Raises:
        ConcordError: the store cannot be reached.
    """
    records: dict[str, RunRecord] = {}
    pending = dict(track.inputs)
    while pending:
        name, digest = pending.popitem()
        if name in records or name not in STEPS:
            continue
        run_id = find_producer_in_pipeline(track, name, digest)
        if run_id is None:
            continue
        try:
            records[name] = read_record(track.client, track.client.get_run(run_id))
        except RetryableError:
            raise
        except ConcordError:  # an earlier version of the step wrote no record
            continue
        pending |= {port: content.md5 for port, content in records[name].lineage.inputs.items()}
    own = RunRecord(track.run_id, track.commit, track.dirty, "", track.lineage, {})
    return {name: records[name] for name in STEPS if name in records} | {track.lineage.step: own}


def ancestry_tags(track: StepRun, ancestors: Mapping[str, RunRecord]) -> dict[str, str]:
    """Returns the tags of a version that store its ancestry."""
    tags = {f"{ANCESTOR}{name}": json.dumps(_to_json(record)) for name, record in ancestors.items()}
    if "ingest" in ancestors:
        tags[DATA] = ancestors["ingest"].lineage.inputs["data"].md5
    if track.pipeline_run:
        tags[PIPELINE_RUN] = track.pipeline_run
    return tags


def ancestry_params(ancestors: Mapping[str, RunRecord]) -> dict[str, Any]:
    """Returns section -> settings that each step used; a step in a container has only its own sections."""
    sections: dict[str, Any] = {}
    for record in ancestors.values():
        sections |= record.lineage.params
    return sections


def _to_json(record: RunRecord) -> dict[str, Any]:
    return {
        "run": record.run_id,
        "commit": record.commit,
        "dirty": record.dirty,
        "code": record.lineage.code_fingerprint,
        "reused": record.reused,
        "in": {port: content.to_json() for port, content in record.lineage.inputs.items()},
        "out": {port: content.to_json() for port, content in record.outputs.items()},
    }
