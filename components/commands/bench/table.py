"""Results files of the GRPO benchmark: Markdown tables, and JSON with every round."""

from pathlib import Path
from typing import Any

import numpy as np

from components.commands.bench.measure import PHASES
from components.commands.machine import facts_line, machine_facts
from components.shared.io.atomic import write_json, write_text


def write_tables(out: Path, results: dict[str, Any]) -> None:
    """Writes OUT.json and OUT.md; `results` is by case."""
    facts = machine_facts()
    write_json(out.with_suffix(".json"), {"cases": results, "machine": facts})
    write_text(out.with_suffix(".md"), markdown(results, facts))


def markdown(results: dict[str, Any], facts: dict[str, Any]) -> str:
    """Formats one table per case: seconds by phase, and memory of the policy pass."""
    lines = [
        "# One GRPO step: ours against TRL's stock trainer",
        "",
        "Seconds: median over alternating rounds (minimum to maximum). Ratio: TRL's time over ours, median over rounds "
        "(minimum to maximum). Limits: the largest speed-up that sharing the prefix allows by the token counts, "
        "G(P+L)/(P+GL) in the language model and G in the vision tower. Memory: peak allocation of the policy pass "
        "without weights and inputs.",
        "",
    ]
    for case in results.values():
        lines += [*_case(case), ""]
    return "\n".join([*lines, facts_line(facts)]) + "\n"


def _case(case: dict[str, Any]) -> list[str]:
    ours, theirs = case["ours"], case["trl"]
    ratios = case["ratios"]
    lines = [
        f"## {case['title'][0].upper()}{case['title'][1:]}",
        "",
        f"B {case['prompts']}, G {case['generations']}, P {case['prompt_tokens']} tokens of image and prompt, "
        f"L {case['completion_tokens']} of completion; limits {case['limit_language_model']:.1f} in the language "
        f"model, {case['limit_vision_tower']} in the vision tower. {len(ratios)} rounds.",
        "",
        "| | ours | TRL | ratio |",
        "|---|---|---|---|",
    ]
    for phase in PHASES:
        mine, other = ours["phases"][phase], theirs["phases"][phase]
        ratio = f"{np.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        if phase != "step":
            ratio = f"{other['median'] / mine['median']:.1f}"
        lines.append(f"| {phase} | {_seconds(mine)} | {_seconds(other)} | {ratio} |")
    memory = [side["policy_pass_bytes"] for side in (ours, theirs)]
    cells = " | ".join(f"{size / 2**20:.0f} MiB" for size in memory)
    return [*lines, f"| memory of the policy pass | {cells} | {memory[1] / memory[0]:.1f} |"]


def _seconds(phase: dict[str, float]) -> str:
    return f"{phase['median']:.3f} ({phase['least']:.3f} to {phase['most']:.3f})"
