"""Results files of the GPU benchmark: Markdown tables, and JSON with every round."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from components.commands.bench.gpu_measure import SIDES
from components.commands.bench.table import between, profile_table, seconds_cell
from components.commands.machine import facts_line
from components.shared.io.atomic import write_json, write_text

MIB = 2**20


def write_gpu_tables(out: Path, results: dict[str, Any]) -> None:
    """Writes OUT.json and OUT.md; `results` has `device`, `machine`, `model` and `parts`."""
    write_json(out.with_suffix(".json"), results)
    write_text(out.with_suffix(".md"), gpu_markdown(results))


def gpu_markdown(results: dict[str, Any]) -> str:
    """Formats one section per part."""
    model, device = results["model"], results["device"]
    lines = [f"# Steps and decoding of {model['title']} on {device['name']}", ""]
    if not device["gpu"]:
        lines += [
            "This machine has no GPU: a tiny model took the same code path. The figures say nothing about a GPU or "
            "about Qwen2.5-VL-3B.",
            "",
        ]
    lines += [
        f"Built from the config with {model['parameters'] / 1e6:,.1f} million random weights in bfloat16; "
        f"LoRA r {model['lora']} of all linear layers but the vision tower's, {model['trained'] / 1e6:.1f} million "
        f"weights; images of {model['side']} px; gradient checkpointing. A stand-in tokenizer cuts digits and tags as "
        "Qwen's does. Seconds and ratios: median over alternating rounds (minimum to maximum). Memory: peak of what is "
        "allocated on top of weights and optimizer state.",
        "",
    ]
    for name, part in results["parts"].items():
        lines += [f"## {_TITLES[name]}", ""]
        lines += [f"Not measured: {part['skipped']}."] if "skipped" in part else _FORMATS[name](part)
        lines += [""]
    spent = sum(part.get("seconds", 0) for part in results["parts"].values())
    return "\n".join([*lines, f"{spent:.0f} s in all. {facts_line(results['machine'])}"]) + "\n"


def _steps(part: dict[str, Any]) -> list[str]:
    ratios = part["ratios"]
    against = {
        "sampled": ("", between(ratios["trl_over_sampled"], 1)),
        "means-ccc": (between(ratios["exact_of_sampled"], 2), between(ratios["trl_over_exact"], 1)),
        "trl": ("", ""),
    }
    lines = [
        f"B {part['prompts']}, G {part['generations']}, P {part['prompt_tokens']} tokens of image and prompt, L "
        f"{part['completion_tokens']} of completion, T {part['tree_nodes']} nodes; "
        f"rounds: {len(ratios['trl_over_sampled'])}.",
        "",
        "| step | seconds | / sampled | TRL / it | memory |",
        "|---|---|---|---|---|",
    ]
    for side in SIDES:
        measured = part["sides"][side.name]
        of_sampled, trl_over = (f" {cell} " if cell else " " for cell in against[side.name])
        seconds, memory = seconds_cell(measured["phases"]["step"]), f"{measured['peak_bytes'] / MIB:,.0f} MiB"
        lines.append(f"| {side.title} | {seconds} |{of_sampled}|{trl_over}| {memory} |")
    lines += ["", "Seconds by phase:", ""]
    for side in SIDES:
        phases = part["sides"][side.name]["phases"]
        named = ", ".join(f"{phase} {phases[phase]['median']:.3f}" for phase in phases if phase != "step")
        lines.append(f"- {side.title}: {named}")
    return lines


def _decoding(part: dict[str, Any]) -> list[str]:
    tree, text = (f"{np.median(part['rates'][way]):.1f}" for way in ("tree", "generate"))
    memory = {way: f"{size / MIB:,.0f} MiB" for way, size in part["peak_bytes"].items()}
    return [
        f"{part['images']} images, {part['at_once']} at once: the tree {tree} images per second ({memory['tree']}), "
        f"`generate` {text} ({memory['generate']}); ratio {between(part['ratios'], 2)}. With random weights every "
        f"branch is unlikely, so the tree leaves out none of its {part['nodes']} nodes, its worst case; no text ends "
        f"by itself, so `generate` stops after the {part['new_tokens']} tokens of the longest answer.",
        "",
        *profile_table(part["profiles"], part["images"]),
    ]


def _agreement(part: dict[str, Any]) -> list[str]:
    lines = [
        f"Log-probabilities of {part['numbers']} numbers for {part['images']} images, absolute differences. The last "
        "line is what rounding to bfloat16 alone makes.",
        "",
        "| difference | largest | mean |",
        "|---|---|---|",
    ]
    return lines + [f"| {pair} | {gap['largest']:.2g} | {gap['mean']:.2g} |" for pair, gap in part["pairs"].items()]


def _resume(part: dict[str, Any]) -> list[str]:
    seconds, gap = part["trainings"], part["largest_difference"]
    same = "the same weights, to the bit" if gap == 0 else f"weights that differ by at most {gap:.2g}"
    return [
        f"{part['steps']} steps of `means` take {seconds['whole']:.1f} s with a checkpoint of "
        f"{part['checkpoint_bytes'] / MIB:,.0f} MiB after step {part['resumed_at']} and one at the end. Resumed from "
        f"step {part['resumed_at']}, the rest takes {seconds['resumed']:.1f} s and ends in {same}."
    ]


_TITLES = {
    "steps-g4": "A step, G 4",
    "steps-g8": "A step, G 8",
    "decoding": "Decoding",
    "agreement": "The tree against scoring one by one",
    "resume": "A resume",
}
_FORMATS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "steps-g4": _steps,
    "steps-g8": _steps,
    "decoding": _decoding,
    "agreement": _agreement,
    "resume": _resume,
}
