"""The sections of a model card. A figure that the version's tags do not hold is left out."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.register.ancestry import DATA
from components.register.decisions import DECISIONS, decided
from components.register.registry import PROMOTED, ROLLED_BACK
from components.settings import Task
from components.shared.scoring.shots import GROUPS, SHOTS

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

FACTS = "concord.card"  # tag of a version: the content of `card_facts`


@dataclass(frozen=True)
class Card:
    """What the tags of a version say.

    Attributes:
        name: of the registered model.
        number: of the version.
        tags: of the version.
        settings: section -> settings of the run that registered it.
        task: what the model reads.
        figures: `components.shared.reporting.metrics.evaluate` of its answers to the test images.
        facts: see `card_facts`; empty if an earlier release registered the version.
    """

    name: str
    number: str
    tags: Mapping[str, str]
    settings: Mapping[str, Any]
    task: Task
    figures: Mapping[str, Any]
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, version: "ModelVersion") -> "Card | None":
        """The card of a version; None if it has no settings or no metrics, because no register step wrote it."""
        tags = version.tags
        if not {"concord.settings", "concord.metrics"} <= tags.keys():
            return None
        settings = json.loads(tags["concord.settings"])
        return cls(
            version.name,
            str(version.version),
            tags,
            settings,
            Task.model_construct(**settings["task"]),  # unchecked: another release may have other keys
            json.loads(tags["concord.metrics"]),
            json.loads(tags.get(FACTS, "{}")),
        )

    @property
    def served(self) -> tuple[str, str]:
        """Model (`sft` or `grpo`) and way of its answers; versions before this choice existed served grpo's text."""
        model, _, way = self.tags.get("concord.served", "grpo.text").partition(".")
        return model, way

    @property
    def by_text(self) -> bool:
        """Whether the answer is the number in the greedy text."""
        return self.served[1] == "text"

    @property
    def has_adapter(self) -> bool:
        """Whether the adapter lies beside the weights; earlier releases merged it."""
        return bool(self.facts.get("adapter"))

    def sections(self) -> list[str]:
        """What the model does, results, decision, data, training and limits, in Markdown."""
        parts = {
            "Results": results(self),
            "Decision": decision(self),
            "Data": _table(data(self)),
            "Training": _table(training(self)),
            "Limits": "\n".join(f"- {limit}" for limit in limits(self)),
        }
        return [summary(self), *(f"## {title}\n\n{text}" for title, text in parts.items() if text)]


def number(value: float) -> str:
    """Three significant digits: `12.9`, `7.50`, `0.00123`, `8,040`."""
    return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:,.0f}"


def summary(card: Card) -> str:
    """The task, and how the answer is read."""
    task = card.task
    unit = f" {task.unit}" if task.unit else ""
    reads = (
        f'Answers "{task.question}" about an image with a number from {task.low:g} to {task.high:g}{unit}, in steps of '
        f"{task.resolution:g}."
    )
    if card.by_text:
        return f"{reads} The answer is the number in the model's greedy text."
    answer = card.settings["answer"]
    balance = card.facts.get("balance")
    prior = "" if balance is None else f", with {balance:g} of the training prior divided out"
    return (
        f"{reads} The answer is the {answer['statistic']} of the model's distribution over all numbers{prior}. Its "
        f"interval is made to hold {100 * answer['coverage']:g} % of the true values in each shot group."
    )


def results(card: Card) -> str:
    """The table by shot group, and the figures of all images together."""
    columns = _columns(card)
    heads = ["images", "n", *columns]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for group in GROUPS:
        count = card.figures["groups"][group]["n"]
        cells = [_cell(*columns[head].get(group, (None, None)), " %" if head == "coverage" else "") for head in columns]
        lines.append(f"| {' | '.join([group, f'{count:,}', *cells])} |")
    return "\n".join([_caption(card), "", *lines, "", *_overall(card)])


Figure = tuple[float | None, Sequence[float] | None]  # a value and its interval


def _columns(card: Card) -> dict[str, dict[str, Figure]]:
    """Head of a column -> shot group -> figure."""

    def errors(figures: Mapping[str, Any]) -> dict[str, Figure]:
        return {group: (found["mae"], found["mae_ci"]) for group, found in figures["groups"].items()}

    columns = {"MAE": errors(card.figures)}
    if (text := card.facts.get("text")) and not card.by_text:
        columns["MAE of its text"] = errors(text)
    if (text := card.facts.get("warm_start")) and card.served[0] != "sft":
        columns["MAE of the warm start's text"] = errors(text)
    for group, found in (card.facts.get("distribution") or {}).get("groups", {}).items():
        intervals = found["conformal"]
        columns.setdefault("CRPS", {})[group] = found["crps"], found["crps_ci"]
        columns.setdefault("coverage", {})[group] = _percent(intervals["coverage"], intervals["coverage_ci"])
        columns.setdefault("median width", {})[group] = intervals["width"], intervals["width_ci"]
    return columns


def _percent(value: float | None, interval: Sequence[float] | None) -> Figure:
    return (None if value is None else 100 * value), interval and [100 * bound for bound in interval]


def _cell(value: float | None, interval: Sequence[float] | None, unit: str = "") -> str:
    if value is None:
        return "–"
    return f"{number(value)}{unit}" + (f" [{number(interval[0])}–{number(interval[1])}]" if interval else "")


def _caption(card: Card) -> str:
    task = card.task
    unit = f" Errors and widths in {task.unit}." if task.unit else ""
    subjects = card.figures.get("subjects")
    over = "these images" if subjects is None else f"their {subjects:,} subjects"
    return (
        f"On {card.figures['n']:,} test images, in brackets 95 % bootstrap intervals over {over}.{unit} A shot "
        f"group says how often training has the label of an image: many (over {task.many} times), medium ({task.few} "
        f"to {task.many}) or few (under {task.few})."
    )


def _overall(card: Card) -> Iterator[str]:
    """One sentence with the figures that have no shot groups."""
    parts = [
        f"{title} {_cell(card.figures[name], card.figures[f'{name}_ci'])}"
        for name, title in (("ccc", "CCC"), ("pearson", "Pearson"), ("rmse", "RMSE"), ("sd_ratio", "sd ratio"))
        if card.figures.get(name) is not None
    ]
    yield f"All test images: {', '.join(parts)}."
    if card.by_text:
        yield f"Answers without a valid number: {_cell(100 * card.figures['unparseable'], None)} %."


def decision(card: Card) -> str:
    """What the version was compared with, and what was decided."""
    outcome = json.loads(card.tags.get("concord.decision", "{}"))
    lines = []
    if outcome:
        reason = outcome["reason"]
        if outcome.get("champion_before") and not outcome.get("few"):  # an error of one machine follows the colon
            reason = reason.partition(": ")[0]
        lines.append(f"The promotion rule was {'met' if outcome['promoted'] else 'not met'}: {reason}")
    if DECISIONS in card.tags:
        lines.append(f"By then, the test set {decided(card.tags[DECISIONS])}; each is one more draw.")
    why = card.tags.get(f"{PROMOTED}why")
    if why and not outcome.get("promoted"):
        lines.append(f"Promoted by hand: {why}")
    if f"{ROLLED_BACK}why" in card.tags:
        to = card.tags[f"{ROLLED_BACK}to"]
        lines.append(f"Rolled back to version {to}: {card.tags[f'{ROLLED_BACK}why']}")
    return "\n\n".join(lines)


def data(card: Card) -> Iterator[tuple[str, str]]:
    """Sizes of the splits and hashes of the data."""
    images = card.facts.get("images", {})
    for split, title in (("train", "training images"), ("val", "validation images"), ("test", "test images")):
        if split in images:
            groups = card.facts.get("train") if split == "train" else None
            yield title, f"{images[split]:,}" + (f" ({_by_group(groups)})" if groups else "")
    for title, key in (("raw data", DATA), ("rows", "concord.in.ingest")):
        if key in card.tags:
            yield f"{title}, DVC hash", f"`{card.tags[key]}`"


def training(card: Card) -> Iterator[tuple[str, str]]:
    """How the weights were trained."""
    sft, grpo, model = (card.settings.get(name) for name in ("sft", "grpo", "model"))
    facts = card.facts.get("training", {})
    served = card.served[0]
    yield "weights", "the SFT warm start" if served == "sft" else f"SFT, then {_method(card)}"
    if base := card.facts.get("base"):
        yield "base model", _base(base)
    if sft:
        steps, batch = facts.get("sft", {}).get("steps"), sft["batch_size"]
        yield "SFT", _words(_steps(steps), f"{batch} images a step", f"learning rate {sft['lr']:g}", _seed(sft))
    if grpo and served == "grpo":
        known, prompts = facts.get("grpo", {}), f"{grpo['prompts']} images a step"
        answers = f"{grpo['generations']} answers each" if grpo["estimator"] == "sampled" else ""
        best = f"step {known['best_step']:,} kept" if "best_step" in known else ""
        rate, beta = f"learning rate {grpo['lr']:g}", f"beta {grpo['beta']:g}"
        yield _method(card), _words(_steps(known.get("steps")), best, prompts, answers, rate, beta, _seed(grpo))
    if model:
        lora = model["lora"]
        stored = "beside the weights" if card.has_adapter else "merged"
        adapters = f"LoRA r {lora['r']}, alpha {lora['alpha']:g}, {stored}" if lora else "all weights trained"
        yield "model", _words(model["dtype"], adapters, "vision tower frozen" if model["freeze_vision"] else "")
    for title, key in (("weights, DVC hash", f"concord.in.{served}"), ("commit", "concord.git.commit")):
        if card.tags.get(key, "none") != "none":  # `none`: the code was in no repository
            yield title, f"`{card.tags[key]}`"


def _base(base: Mapping[str, str]) -> str:
    if base["kind"] == "hub":
        return f"{base['id']} at `{base['revision']}`" if base["revision"] else base["id"]
    if base["kind"] == "tiny":
        return "a small Idefics3 with random weights, built from its config"
    return "a local folder"


def _method(card: Card) -> str:
    if known := card.facts.get("training", {}).get("grpo", {}).get("method"):
        return str(known)
    return "GRPO"


def _steps(count: int | None) -> str:
    return "" if count is None else f"{count:,} steps"


def _seed(section: Mapping[str, Any]) -> str:
    return f"seed {section['seed']}"


def _words(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _by_group(groups: Mapping[str, int]) -> str:
    return ", ".join(f"{group} {groups[group]:,}" for group in SHOTS)


def limits(card: Card) -> Iterator[str]:
    """What the figures do not show, and what is not known."""
    task, few = card.task, card.figures["groups"]["few"]["n"]
    trained = card.facts.get("train", {}).get("few")
    of = "" if trained is None else f" {trained:,} training images have a few-shot label."
    yield f"Rare numbers are judged on {few:,} few-shot test images.{of}"
    if not card.by_text:
        yield from _interval_limits(card)
        yield (
            "It gives a number for every image, also for one that shows nothing to read. Check answers with a low mass "
            "(the probability of all numbers together)." + _mass(card)
        )
    yield f"It never answers below {task.low:g} or above {task.high:g}."
    yield (
        "The brackets in the table are for other images of the same kind. They do not cover another training with "
        "another seed."
    )
    yield "Not known: how it reads images from another source than those of the training data."


def _interval_limits(card: Card) -> Iterator[str]:
    text = "An interval holds only for images like the validation images, from which its thresholds come"
    if known := card.facts.get("calibrate"):
        text += f" ({_by_group(known)})"
    yield f"{text}."
    groups = (card.facts.get("distribution") or {}).get("groups", {})
    present = [group for group in SHOTS if groups.get(group, {}).get("n")]
    if short := [group for group in present if not groups[group]["conformal"]["guaranteed"]]:
        yield f"There are too few of them to guarantee the coverage of: {', '.join(short)}."


def _mass(card: Card) -> str:
    if not (mass := (card.facts.get("distribution") or {}).get("mass")):
        return ""
    return f" On the test images it is {number(mass['mean'])} on average and {number(mass['least'])} at least."


def _table(rows: Iterator[tuple[str, str]]) -> str:
    lines = [f"| {name} | {text} |" for name, text in rows]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else ""
