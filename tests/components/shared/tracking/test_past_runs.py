"""Past runs on a real store: their records, and the search by DVC hash."""

from pathlib import Path

import pytest

from components.errors import ConcordError
from components.settings import Settings
from components.shared.tracking.connection import connect
from components.shared.tracking.hashes import dvc_content, dvc_hash
from components.shared.tracking.past_runs import find_consumer, find_producer, read_record
from components.shared.tracking.step_run import step_run
from components.steps import STEPS


@pytest.fixture
def data(store: Path) -> Path:
    (store / "data").mkdir()
    (store / "data" / "a.csv").write_text("x\n1\n")
    return store / "data"


def test_record_holds_lineage_outputs_and_commit(
    data: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONCORD_COMMIT", "c0ffee")  # the working directory is not a repository
    with step_run(STEPS["ingest"], settings, {"data": data}) as run:
        assert read_record(connect(), connect().get_run(run.run_id)).outputs == {}, "the record exists from the start"
        run.finish({}, {"out": data})
    client = connect()
    stored = client.get_run(run.run_id)
    record = read_record(client, stored)
    assert record.lineage == run.lineage
    assert record.lineage.inputs == {"data": dvc_content(data)}
    assert record.outputs == {"out": dvc_content(data)}
    assert (record.commit, record.dirty, record.reused) == ("c0ffee", False, "")
    assert stored.data.tags["concord.key"] == record.lineage.key
    with pytest.raises(ConcordError, match=r"could not read lineage\.json"):
        read_record(client, client.create_run("0"))
    for damaged in (b'{"step": "ing', b"[]", b"\xff\xfe", b'{"outputs": []}'):
        (data.parent / "lineage.json").write_bytes(damaged)
        client.log_artifact(run.run_id, str(data.parent / "lineage.json"))
        with pytest.raises(ConcordError, match=rf"run {run.run_id}: its artifact lineage\.json is damaged"):
            read_record(client, stored)


def test_runs_that_computed_are_preferred_to_runs_that_fetched(data: Path, settings: Settings) -> None:
    ids: list[str] = []
    for reused in (False, True):
        with step_run(STEPS["ingest"], settings, {"data": data}) as run:
            run.finish({}, {"out": data})
            if reused:
                run.tag("concord.reused", f"run {ids[0]}")
        ids.append(run.run_id)
    assert find_producer(run.client, run.experiment_id, dvc_hash(data)) == ids[0]
    assert find_consumer(run.client, "ingest", "data", dvc_hash(data)) == ids[0], "the other run did not read its input"
    run.client.delete_run(ids[0])
    assert find_consumer(run.client, "ingest", "data", dvc_hash(data)) == ids[1]
