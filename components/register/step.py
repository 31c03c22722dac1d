"""Registration: the model goes into MLflow's registry as challenger, and becomes champion where the rule says so."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.errors import ConcordError
from components.register.ancestry import ancestry_tags, params_of_all, trace
from components.register.packaging import log_model, served_settings
from components.register.promotion import decide
from components.register.registry import FINGERPRINT, PROMOTED, ROLLED_BACK, Registry
from components.register.served_predictions import as_answers, ask
from components.settings import Settings
from components.shared.io.atomic import new_folder, write_json
from components.shared.io.secrets import masked_leaves
from components.shared.reporting import metrics
from components.shared.reporting.predictions import predictions_file, read_predictions, to_predictions
from components.shared.scoring.errors import Predictions
from components.shared.scoring.shots import GROUPS
from components.shared.tracking.connection import mlflow_errors
from components.shared.tracking.step_run import StepRun, fingerprint, run_that_gave

DECISION = "concord.decision"
VERIFIED = "concord.verified"


def run(settings: Settings, track: StepRun, *, ingest: Path, grpo: Path, evaluate: Path, out: Path) -> None:
    """Registers the model, checks that the registry gives it back, decides, and writes registration.json.

    After a kill, or with the same weights and settings, it goes on with the version that is there.

    Args:
        ingest: row shards; the registered model and the champion are asked about the test split.
        grpo: the model folder.
        evaluate: what evaluate wrote about it.
        out: registration.json (version, promoted, reason, metrics, champion before, runs), metrics.json.

    Raises:
        ConcordError: the registry gives other answers than evaluate wrote, or is away.
    """
    registry = Registry(track.client, settings.registry.model)
    registry.create()
    ours = to_predictions(read_predictions(predictions_file(evaluate, "grpo")), settings.task)
    runs = _runs(track)
    number = _register(registry, settings, track, grpo)
    _link(registry, number, settings, track, evaluate, runs)
    _verify(registry, number, settings, ingest, evaluate)
    registry.challenge(number)
    if registry.champion() == number:  # a run that was killed, or one with nothing new
        settled = _settled(registry, number)
    else:
        settled = _decide(registry, number, settings, ours, ingest, evaluate)
        registry.tag(number, {DECISION: json.dumps(settled)})
        registry.describe(number, settled["reason"])
        if settled["promoted"]:
            registry.promote(number, settled["reason"])
    figures = metrics.evaluate(ours, settings.registry.bootstrap, settings.registry.seed)
    known = {"name": registry.name, "version": number, "metrics": figures, "runs": runs}
    with new_folder(out) as place:
        write_json(place / "registration.json", known | settled)
        write_json(place / "metrics.json", _scalars(settled))


def _runs(track: StepRun) -> dict[str, str | None]:
    """MLflow runs that the version comes from: the experiment's, this step's, and those that made its inputs."""
    made = {port: run_that_gave(track, port, digest) for port, digest in track.inputs.items()}
    return {"experiment": track.parent_id, "register": track.run_id, **made}


def _register(registry: Registry, settings: Settings, track: StepRun, grpo: Path) -> str:
    """The version of these weights, served with these settings: found again, or stored and registered."""
    mark = fingerprint({"weights": track.inputs["grpo"], "served": served_settings(settings), "model": registry.name})
    found = registry.with_fingerprint(mark)
    if found is None:
        stored = log_model(track, grpo, settings)
        with mlflow_errors(f"register a version of {registry.name}"):
            found = track.client.create_model_version(
                registry.name, f"models:/{stored}", track.run_id, {FINGERPRINT: mark}, model_id=stored
            )
    return str(found.version)


def _link(
    registry: Registry,
    number: str,
    settings: Settings,
    track: StepRun,
    evaluate: Path,
    runs: Mapping[str, str | None],
) -> None:
    """Ties the version to metrics, settings, data, code and runs."""
    figures = json.loads((evaluate / "metrics.json").read_text(encoding="utf-8"))["grpo"]
    tags = {f"concord.in.{port}": digest for port, digest in track.inputs.items()}
    tags |= {f"concord.mae.{group}": str(figures["groups"][group]["mae"]) for group in GROUPS}
    tags |= {f"concord.run.{name}": run_id for name, run_id in runs.items() if run_id}
    ancestors = trace(track)
    tags |= ancestry_tags(track, ancestors)
    tags |= {
        "concord.unparseable": str(figures["unparseable"]),
        "concord.metrics": json.dumps(figures),
        "concord.settings": json.dumps(masked_leaves({**settings.tree(), **params_of_all(ancestors)})),
        "concord.git.commit": track.commit,
    }
    registry.tag(number, tags)


def _verify(registry: Registry, number: str, settings: Settings, ingest: Path, evaluate: Path) -> None:
    """Holds the answers of the registered model against evaluate's, number by number."""
    file = predictions_file(evaluate, "grpo")
    expected = read_predictions(file)
    found = ask(registry.name, number, ingest, settings.evaluate.batch_size)
    if found["id"].to_pylist() != expected["id"].to_pylist():
        raise ConcordError(f"{file}: not about the test images in {ingest}. Run the evaluate step again.")
    rows = zip(expected["id"].to_pylist(), expected["value"].to_pylist(), found["value"].to_pylist(), strict=True)
    wrong = [row for row in rows if row[1] != row[2]]
    registry.tag(number, {VERIFIED: "false" if wrong else "true"})
    if wrong:
        id, was, now = wrong[0]
        raise ConcordError(
            f"{registry.name} version {number}: loaded from the registry it answers {len(wrong)} of {found.num_rows} "
            f"test images differently from {file} (first {id}: {now}, was {was}). Run evaluate and register again, on "
            "one machine and with the same libraries. The version gets no alias."
        )


def _decide(
    registry: Registry, number: str, settings: Settings, ours: Predictions, ingest: Path, evaluate: Path
) -> dict[str, Any]:
    """Whether the version is to be champion, why, and the champion that it was held against."""
    rule, champion = settings.registry, registry.champion()
    before: dict[str, Any] | None = None
    if champion is None:
        against = "the SFT warm start (there is no champion yet)"
        bar = to_predictions(read_predictions(predictions_file(evaluate, "sft")), settings.task)
    else:
        against = f"the champion (version {champion})"
        before = {"version": champion, "metrics": None}
        try:
            found = ask(registry.name, champion, ingest, settings.evaluate.batch_size)
        except ConcordError as error:
            reason = f"{against} could not be judged on today's test images, so nothing is shown against it: {error}"
            return {"promoted": False, "reason": reason, "champion_before": before, "met": None, "few": None}
        bar = as_answers(found, ours, settings.task)
        before["metrics"] = metrics.evaluate(bar, rule.bootstrap, rule.seed)
    decision = decide(ours, bar, against, rule, settings.task.unit)
    promote, reason = decision.promote, decision.reason
    tags = registry.version(number).tags
    if promote and f"{ROLLED_BACK}at" in tags:
        who, when, why = (tags[f"{ROLLED_BACK}{key}"] for key in ("by", "at", "why"))
        promote = False
        reason = f"rolled back by {who} at {when} ({why}), so only a person may promote it. The rule is met {reason}"
    met = {check.name: check.met for check in decision.checks}
    return {"promoted": promote, "reason": reason, "champion_before": before, "met": met, "few": decision.few}


def _settled(registry: Registry, number: str) -> dict[str, Any]:
    """What was decided about a version that is champion already."""
    tags = registry.version(number).tags
    decided: dict[str, Any] = json.loads(tags[DECISION]) if DECISION in tags else {}
    if decided.get("promoted"):
        return decided
    reason = f"promoted by hand: {tags.get(f'{PROMOTED}why', 'no reason given')}"
    return {"champion_before": None, "met": None, "few": None, **decided, "promoted": True, "reason": reason}


def _scalars(settled: Mapping[str, Any]) -> dict[str, Any]:
    few = settled["few"] or {}
    low, high = few.get("ci") or (None, None)
    difference = {"value": few.get("difference"), "low": low, "high": high}
    return {"promoted": int(settled["promoted"]), "few_difference": difference}
