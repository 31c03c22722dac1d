"""Registers the model in MLflow as challenger, and makes it champion if the promotion rule is met."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from components.console import console
from components.errors import ConcordError
from components.register.against_champion import Compared, compare
from components.register.ancestry import ancestry_params, ancestry_tags, trace_ancestry
from components.register.card_facts import card_facts
from components.register.card_sections import FACTS
from components.register.decisions import DECISIONS, decisions_on
from components.register.message import notify
from components.register.model_card import publish_card
from components.register.packaging import log_model
from components.register.promotion import decide
from components.register.registry import DECISION, FINGERPRINT, PROMOTED, ROLLED_BACK, Registry
from components.register.seen_images import seen_by, store_seen_images
from components.register.served import Served
from components.register.served_predictions import CannotPredictError, different_images, served_predictions
from components.settings import Settings
from components.shared.io.atomic import new_folder, write_json
from components.shared.io.secrets import masked_json
from components.shared.reporting import metrics
from components.shared.reporting.predictions import predictions_file, read_predictions, to_predictions
from components.shared.rows.validation import tune_constant
from components.shared.scoring.shots import GROUPS
from components.shared.tracking.champion import SETTINGS, other_task
from components.shared.tracking.connection import mlflow_errors
from components.shared.tracking.lineage import fingerprint
from components.shared.tracking.past_runs import find_producer_in_pipeline
from components.shared.tracking.step_run import StepRun

VERIFIED = "concord.verified"
DIFFERENT = "concord.different"
SERVED = "concord.served"


def run(settings: Settings, track: StepRun, *, ingest: Path, sft: Path, grpo: Path, evaluate: Path, out: Path) -> None:
    """Registers what evaluate chose, verifies it, applies the promotion rule, and writes registration.json.

    After a kill, or with the same weights and settings, the existing version is used.

    Args:
        ingest: row shards; the registered model and the champion predict the test split.
        sft, grpo: model folders; evaluate chose one of them.
        evaluate: output of evaluate for these models.
        out: registration.json (version, promoted, reason, metrics, previous champion, runs) and metrics.json.

    Raises:
        ConcordError: the registered model predicts more test images differently from evaluate than allowed; the
            registry cannot be reached; the champion cannot be asked now, or another process changed it meanwhile.
    """
    registry = Registry(track.client, settings.registered_model)
    registry.create()
    served = Served.read(settings, evaluate, {"sft": sft, "grpo": grpo})
    runs = _runs(track)
    number = _register(registry, served, track)
    store_seen_images(registry, number, ingest)
    _link(registry, number, served, settings, track, evaluate, runs)
    facts = card_facts(served, settings.model, ingest, {"sft": sft, "grpo": grpo}, evaluate)
    registry.tag(number, {FACTS: json.dumps(facts)})
    _verify(registry, number, served, settings, ingest)
    registry.challenge(number)
    if registry.champion() == number:  # this run follows a killed one, or has the same model and settings
        outcome = _earlier_decision(registry, number)
        publish_card(registry, number)
    else:
        champion = registry.champion()
        outcome = _decide(registry, number, champion, served, settings, ingest, evaluate, track.inputs["ingest"])
        registry.tag(number, {DECISION: json.dumps(outcome)} | decisions_on(registry, number, ingest))
        publish_card(registry, number, outcome["reason"])
        if outcome["promoted"]:
            registry.promote(number, outcome["reason"], champion)
    figures = metrics.evaluate(
        served.predictions, settings.registry.bootstrap, settings.registry.seed, tune_constant(ingest)
    )
    registration = {
        "name": registry.name,
        "version": number,
        "served": f"{served.model}.{served.way}",
        "metrics": figures,
        "runs": runs,
        "test_set_decisions": int(registry.version(number).tags.get(DECISIONS, 0)) or None,
    }
    with new_folder(out) as folder:
        write_json(folder / "registration.json", registration | outcome)
        write_json(folder / "metrics.json", _metrics(outcome))
    notify(settings.experiment, registration | outcome)


def _runs(track: StepRun) -> dict[str, str | None]:
    """Ids of the MLflow runs behind the version: the experiment's, this step's, and those that wrote its inputs."""
    producers = {port: find_producer_in_pipeline(track, port, digest) for port, digest in track.inputs.items()}
    return {"experiment": track.parent_id, "register": track.run_id, **producers}


def _register(registry: Registry, served: Served, track: StepRun) -> str:
    """Returns the version with these weights and served settings, creating it if it does not exist."""
    identity = {"weights": track.inputs[served.model], "served": served.reader.tree(), "model": registry.name}
    digest = fingerprint(identity)
    version = registry.with_fingerprint(digest)
    if version is None:
        model_id = log_model(track, served.weights, served.reader)
        with mlflow_errors(f"register a version of {registry.name}"):
            version = track.client.create_model_version(
                registry.name, f"models:/{model_id}", track.run_id, {FINGERPRINT: digest}, model_id=model_id
            )
    return str(version.version)


def _link(
    registry: Registry,
    number: str,
    served: Served,
    settings: Settings,
    track: StepRun,
    evaluate: Path,
    runs: Mapping[str, str | None],
) -> None:
    """Tags the version with its metrics, settings, data, code and runs."""
    figures = json.loads((evaluate / "metrics.json").read_text(encoding="utf-8"))[served.model][served.way]
    tags = {f"concord.in.{port}": digest for port, digest in track.inputs.items()}
    tags |= {f"concord.mae.{group}": str(figures["groups"][group]["mae"]) for group in GROUPS}
    tags |= {f"concord.run.{name}": run_id for name, run_id in runs.items() if run_id}
    ancestors = trace_ancestry(track)
    tags |= ancestry_tags(track, ancestors)
    tags |= {
        SERVED: f"{served.model}.{served.way}",
        "concord.unparseable": str(figures["unparseable"]),
        "concord.metrics": json.dumps(figures),
        SETTINGS: json.dumps(masked_json({**settings.tree(), **ancestry_params(ancestors)})),
        "concord.git.commit": track.commit,
    }
    registry.tag(number, tags)


def _verify(registry: Registry, number: str, served: Served, settings: Settings, ingest: Path) -> None:
    """Compares the predictions of the registered model with those of evaluate, image by image."""
    ids = served.table["id"].to_pylist()
    predicted = served_predictions(registry.name, number, ingest, settings.evaluate.batch_size, ids)
    different = different_images(served.expected(), predicted, settings.task)
    share, allowed = len(different) / len(ids), settings.registry.max_different
    registry.tag(number, {VERIFIED: "true" if share <= allowed else "false", DIFFERENT: str(len(different))})
    if different:
        text = (
            f"{registry.name} version {number}: loaded from the registry, it predicts {len(different)} of {len(ids)} "
            f"test images differently from evaluate (first {ids[min(different)]}: {different[min(different)]})"
        )
        if share > allowed:
            raise ConcordError(
                f"{text}. A share of {allowed:g} is allowed (register.max_different). Run evaluate and register again, "
                "on one machine and with the same libraries. The version gets no alias."
            )
        console.print(f"[yellow]warning[/] {escape(text)}")


def _decide(
    registry: Registry,
    number: str,
    champion: str | None,
    served: Served,
    settings: Settings,
    ingest: Path,
    evaluate: Path,
    digest: str,
) -> dict[str, Any]:
    """Returns whether the version becomes champion, why, and the champion that it was compared with.

    Args:
        champion: number of the present champion, or None.
        digest: DVC hash of `ingest`.
    """
    rule = settings.registry
    before: dict[str, Any] | None = {"version": champion, "metrics": None} if champion else None
    if champion is None:
        name = "the greedy text of the SFT warm start (there is no champion yet)"
        text = to_predictions(read_predictions(predictions_file(evaluate, "sft")), settings.task)
        compared = Compared(served.predictions, text, served.mass, ())
    else:
        name = f"the champion (version {champion})"
        if difference := other_task(registry.version(champion), settings.task):
            return _refused(
                f"{name} reads something else ({difference}), so the two are not compared. Give this experiment a "
                "registered model of its own (register.model), or promote the version by hand.",
                before,
            )
        seen = seen_by(registry, champion, ingest, digest)
        try:
            compared = compare(registry.name, champion, served, settings, ingest, seen)
        except CannotPredictError as error:
            reason = f"{name} could not predict the current test images, so no gain can be shown: {error}"
            return _refused(reason, before)
        figures = metrics.evaluate(compared.baseline, rule.bootstrap, rule.seed, tune_constant(ingest))
        before = {"version": champion, "metrics": figures}
    decision = decide(compared.challenger, compared.baseline, name, rule, settings.task.unit, compared.mass)
    promote, reason = decision.promote, " ".join([decision.reason, *compared.notes])
    tags = registry.version(number).tags
    if promote and f"{ROLLED_BACK}at" in tags:
        who, when, why = (tags[f"{ROLLED_BACK}{key}"] for key in ("by", "at", "why"))
        promote = False
        reason = f"rolled back by {who} at {when} ({why}), so it must be promoted by hand. The rule is met {reason}"
    met = {check.name: check.met for check in decision.checks}
    return {"promoted": promote, "reason": reason, "champion_before": before, "met": met, "few": decision.few}


def _refused(reason: str, before: dict[str, Any] | None) -> dict[str, Any]:
    return {"promoted": False, "reason": reason, "champion_before": before, "met": None, "few": None}


def _earlier_decision(registry: Registry, number: str) -> dict[str, Any]:
    """Returns the stored decision about a version that is already champion."""
    tags = registry.version(number).tags
    decision: dict[str, Any] = json.loads(tags[DECISION]) if DECISION in tags else {}
    if decision.get("promoted"):
        return decision
    reason = f"promoted by hand: {tags.get(f'{PROMOTED}why', 'no reason given')}"
    return {"champion_before": None, "met": None, "few": None, **decision, "promoted": True, "reason": reason}


def _metrics(outcome: Mapping[str, Any]) -> dict[str, Any]:
    few = outcome["few"] or {}
    low, high = few.get("ci") or (None, None)
    difference = {"value": few.get("difference"), "low": low, "high": high}
    return {"promoted": int(outcome["promoted"]), "few_difference": difference}
