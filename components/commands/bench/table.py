"""Results files of the training and decoding benchmark: Markdown tables, and JSON with every round."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.commands.bench.measure import SIDES
from components.commands.bench.timed_steps import TimedExactSteps, TimedSteps
from components.commands.bench.trainers import SAMPLED, TRL, Side
from components.commands.machine import facts_line, machine_facts
from components.shared.io.atomic import write_json, write_text


def write_tables(out: Path, results: dict[str, Any]) -> None:
    """Writes OUT.json and OUT.md; `results` is by case."""
    facts = machine_facts()
    write_json(out.with_suffix(".json"), {"cases": results, "machine": facts})
    write_text(out.with_suffix(".md"), markdown(results, facts))


def markdown(results: dict[str, Any], facts: dict[str, Any]) -> str:
    """Formats the tables of each case: sampled steps by phase, steps of every estimator, decoding."""
    lines = [
        "# One GRPO step: ours against TRL's stock trainer",
        "",
        "Seconds and ratios: median over alternating rounds (minimum to maximum). Limits: the largest speed-up that "
        "sharing the prefix allows by the token counts, G(P+L)/(P+GL) in the language model and G in the vision "
        "tower. Memory: peak allocation of the policy pass without weights and inputs; for the exact estimators, the "
        "reference's pass is part of it.",
        "",
        "Sampled: our trainer with `estimator: sampled`. Exact: `means` and `policy`, which sample nothing and take "
        "the probability of every number from one pass over P + T tokens; T counts the inner nodes of the answer tree.",
        "",
    ]
    for case in results.values():
        lines += [*_case(case), ""]
    return "\n".join([*lines, facts_line(facts)]) + "\n"


def _case(case: dict[str, Any]) -> list[str]:
    lines = [
        f"## {case['title'][0].upper()}{case['title'][1:]}",
        "",
        f"B {case['prompts']}, G {case['generations']}, P {case['prompt_tokens']} tokens of image and prompt, "
        f"L {case['completion_tokens']} of completion, T {case['tree_nodes']} nodes; limits "
        f"{case['limit_language_model']:.1f} in the language model, {case['limit_vision_tower']} in the vision tower. "
        f"{len(case['ratios'])} rounds.",
        "",
        *_sampled_by_phase(case),
        "",
        *_estimators(case),
    ]
    if case["limit"] is not None:
        lines += ["", *_expected_steps(case)]
    if case["decoding"] is not None:
        lines += ["", *_decoding(case)]
    return lines


def _sampled_by_phase(case: dict[str, Any]) -> list[str]:
    ours, theirs = case["sides"][SAMPLED.name], case["sides"][TRL.name]
    lines = [f"| beta {case['beta']:g} | sampled | TRL | ratio |", "|---|---|---|---|"]
    for phase in TimedSteps.phases:
        mine, other = ours["phases"][phase], theirs["phases"][phase]
        ratio = between(case["ratios"], 1) if phase == "step" else f"{other['median'] / mine['median']:.1f}"
        lines.append(f"| {phase} | {seconds_cell(mine)} | {seconds_cell(other)} | {ratio} |")
    memory = [side["policy_pass_bytes"] for side in (ours, theirs)]
    cells = " | ".join(f"{size / 2**20:.0f} MiB" for size in memory)
    return [*lines, f"| memory of the policy pass | {cells} | {memory[1] / memory[0]:.1f} |"]


def _estimators(case: dict[str, Any]) -> list[str]:
    lines = ["| step | beta | seconds | / sampled | TRL / it | memory |", "|---|---|---|---|---|---|"]
    for side in SIDES:
        measured = case["sides"][side.name]
        ratios = [
            between(case[kind][side.name], digits) if side.name in case[kind] else ""
            for kind, digits in (("of_sampled", 2), ("trl_over", 1))
        ]
        size = measured["policy_pass_bytes"]
        cells = [
            side.title,
            _beta(case, side),
            seconds_cell(measured["phases"]["step"]),
            *ratios,
            f"{size / 2**20:.0f} MiB" if size is not None else "",
        ]
        lines.append(_row(cells))
    return lines


def _expected_steps(case: dict[str, Any]) -> list[str]:
    """The expectation, what falls short of it, and where the exact steps spend their time."""
    exact = [side for side in SIDES if side.estimator != "sampled"]
    medians = {side: float(np.median(case["of_sampled"][side.name])) for side in exact}
    short = [
        f"{side.title} with beta {_beta(case, side)} takes {part:.2f}"
        for side, part in medians.items()
        if part > case["limit"]
    ]
    expected = f"Expected: an exact step takes at most {case['limit']:g} of the sampled one."
    if not short:
        return [f"{expected} All do."]
    phases = TimedExactSteps.phases[1:]
    with_kl, without = (decoder_tokens(case, kl) for kl in (True, False))
    lines = [
        f"{expected} Short of it: {'; '.join(short)}. Tokens per input that the decoder computes, a backward pass "
        f"counted as two forward passes: exact {with_kl[0]:,}, sampled {with_kl[1]:,}, which is "
        f"{with_kl[0] / with_kl[1]:.2f}; without KL {without[0]:,} and {without[1]:,}, which is "
        f"{without[0] / without[1]:.2f}. An exact step beats that ratio only by what sampling token by token costs on "
        "top. Seconds by phase:",
        "",
        f"| step | beta | {' | '.join(phases)} |",
        "|---|---|" + "---|" * len(phases),
    ]
    for side in exact:
        medians_of = case["sides"][side.name]["phases"]
        cells = " | ".join(f"{medians_of[phase]['median']:.3f}" for phase in phases)
        lines.append(f"| {side.title} | {_beta(case, side)} | {cells} |")
    return lines


def decoder_tokens(case: dict[str, Any], kl: bool) -> tuple[int, int]:
    """Tokens per input that an exact and a sampled step compute, a backward pass counted as two forward passes.

    Exact: P + T forward and backward, and forward again for the reference. Sampled: P once for rollout and policy pass,
    GL in each of the two, P + GL backward, and forward again for the reference.
    """
    p, t = case["prompt_tokens"], case["tree_nodes"]
    answers = case["generations"] * case["completion_tokens"]
    exact, sampled = 3 * (p + t), 3 * p + 4 * answers
    return exact + (p + t if kl else 0), sampled + (p + answers if kl else 0)


def _decoding(case: dict[str, Any]) -> list[str]:
    decoding = case["decoding"]
    rates = [f"{np.median(decoding['rates'][way]):.0f}" for way in ("tree", "generate")]
    ratio = float(np.median(decoding["ratios"]))
    verdict = "It is." if ratio >= case["faster"] else _shortfall(decoding)
    return [
        f"Decoding {decoding['images']} images, {decoding['at_once']} at once: the tree {rates[0]} images per second, "
        f"`generate` {rates[1]}; ratio {between(decoding['ratios'], 2)}. Expected: at least {case['faster']:g}. "
        f"{verdict}",
        "",
        *profile_table(decoding["profiles"], decoding["images"]),
        "",
        f"The model was taught the form of the answers only: {decoding['valid']:.0%} of the texts have a valid answer, "
        f"all numbers together have a probability of {decoding['mass']:.3f} on average. An image keeps "
        f"{decoding['kept']:.1f} of {decoding['nodes']} nodes.",
    ]


def _shortfall(decoding: dict[str, Any]) -> str:
    """Which pass takes the time, in tokens, and how fast decoding could be at most."""
    tree, text = (decoding["profiles"][way] for way in ("tree", "generate"))
    whole, of_text = (sum(part["seconds"] for part in parts) for parts in (tree, text))
    largest = max((part for part in tree if part["part"].startswith("pass")), key=lambda part: part["seconds"])
    tokens = sum(part["tokens"] for part in text if part["part"].startswith("pass"))
    shared = sum(part["seconds"] for part in text if part["part"] in ("processor", "vision tower", "prompt"))
    return (
        f"It is not: {largest['part']} of the tree runs {largest['tokens']} tokens per image and takes "
        f"{largest['seconds'] / whole:.0%} of the time; `generate` runs {tokens} after the prompt. Processor, vision "
        f"tower and prompt, which both ways need, take {shared / of_text:.0%} of `generate`'s time, so no way of "
        f"decoding could be more than {of_text / shared:.2f} times as fast."
    )


def profile_table(profiles: dict[str, list[dict[str, Any]]], images: int) -> list[str]:
    """Milliseconds per image and share of the time, by part and way of decoding."""
    ways = sorted(profiles, reverse=True)  # the tree first; a JSON file does not keep the order
    longest = max(profiles.values(), key=len)
    names = [part["part"] for part in longest]
    lines = [
        "| ms per image (share) | " + " | ".join(f"{way}, tokens | {way}" for way in ways) + " |",
        "|---|" + "---|---|" * len(ways),
    ]
    for name in names:
        cells = []
        for way in ways:
            whole = sum(part["seconds"] for part in profiles[way])
            part = next((part for part in profiles[way] if part["part"] == name), None)
            share = f"{1000 * part['seconds'] / images:.2f} ({part['seconds'] / whole:.0%})" if part else ""
            cells += [str(part["tokens"] or "") if part else "", share]
        lines.append(_row([name, *cells]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def _beta(case: dict[str, Any], side: Side) -> str:
    return f"{case['beta'] if side.kl else 0:g}"


def between(values: list[float], digits: int) -> str:
    """Formats median, minimum and maximum."""
    return f"{np.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def seconds_cell(phase: dict[str, float]) -> str:
    """Formats median, least and most of a phase."""
    return f"{phase['median']:.3f} ({phase['least']:.3f} to {phase['most']:.3f})"
