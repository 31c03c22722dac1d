"""The benchmark of training steps and decoding, on cases too small for meaningful times."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.commands.bench.measure import CASES, SIDES, Case, measure
from components.commands.bench.table import decoder_tokens, write_tables
from components.commands.bench.tags import with_split_tags
from components.shared.model.answer_tree import answer_tree
from components.shared.model.prompts import max_answer_tokens
from components.shared.model.tiny import build_processor
from tests.support.grpo_training import small_settings


def test_case_changes_only_the_settings_it_names() -> None:
    base = small_settings()
    heavy = CASES["image-heavy"].settings(base)
    assert (heavy.grpo.prompts, heavy.grpo.generations) == (4, 8)
    assert heavy.model.tiny is not None
    assert base.model.tiny is not None
    assert (heavy.model.tiny.image_size // heavy.model.tiny.patch_size) ** 2 == 256
    assert heavy.model.tiny.text_width == base.model.tiny.text_width
    assert CASES["default"].settings(base) == base


def test_split_tags_are_three_tokens_and_the_rest_stays_the_same() -> None:
    settings = small_settings()
    assert settings.model.tiny is not None
    whole = build_processor(settings.model.tiny, [settings.task.question])
    split = with_split_tags(whole)
    text = "<answer> 35 </answer>"
    assert len(whole.tokenizer(text).input_ids) == 4
    assert len(split.tokenizer.tokenize("<answer>")) == len(split.tokenizer.tokenize(" </answer>")) == 3
    assert split.tokenizer.decode(split.tokenizer(text).input_ids) == text
    question = settings.task.question
    assert split.tokenizer(question).input_ids == whole.tokenizer(question).input_ids
    assert len(answer_tree(split, settings.task).values) == 101


@pytest.mark.parametrize("split", [False, True])
def test_every_side_takes_the_same_steps(tmp_path: Path, split: bool) -> None:
    case = Case(
        "a small case", prompts=2, generations=2, split_tags=split, decoded=12, at_once=8, taught=3,
        limit=1e-9 if split else 1e9, faster=1e9 if split else 0.0,
    )  # fmt: skip
    result = measure(case, small_settings(beta=0.04), rounds=2)
    p, length = result["prompt_tokens"], result["completion_tokens"]
    settings = small_settings()
    assert settings.model.tiny is not None
    processor = build_processor(settings.model.tiny, [settings.task.question])
    longest = max_answer_tokens(with_split_tags(processor) if split else processor, settings.task)
    assert 1 <= length <= longest
    assert result["limit_language_model"] == pytest.approx(2 * (p + length) / (p + 2 * length))
    for side in SIDES:
        measured = result["sides"][side.name]
        assert len(measured["rounds"]) == 2
        for one in measured["rounds"]:
            assert sum(seconds for phase, seconds in one.items() if phase != "step") <= one["step"]
            if side.estimator != "sampled":
                assert (one["reference"] > 0) == side.kl
        step = measured["phases"]["step"]
        assert step["least"] <= step["median"] <= step["most"]
        assert (measured["policy_pass_bytes"] or 0) > 1000 * side.kl - 1
    for side in (side for side in SIDES if side.estimator != "sampled"):
        suffix = "" if side.kl else "-no-kl"
        own, sampled, stock = (
            np.array([one["step"] for one in result["sides"][name]["rounds"]])
            for name in (side.name, f"sampled{suffix}", f"trl{suffix}")
        )
        assert result["of_sampled"][side.name] == pytest.approx(own / sampled)
        assert result["trl_over"][side.name] == pytest.approx(stock / own)
    decoding = result["decoding"]
    assert 0 <= decoding["kept"] <= decoding["nodes"] == result["tree_nodes"]
    assert decoding["ratios"] == pytest.approx(
        np.array(decoding["rates"]["tree"]) / np.array(decoding["rates"]["generate"])
    )
    assert [part["tokens"] for part in decoding["profiles"]["generate"]][:4] == [0, 0, p, 1]
    write_tables(tmp_path / "bench", {"small": result})
    assert json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["cases"]["small"] == result
    check_table((tmp_path / "bench.md").read_text(encoding="utf-8"), result, split)


def check_table(text: str, result: dict[str, Any], short: bool) -> None:
    assert "## A small case" in text
    assert f"B 2, G 2, P {result['prompt_tokens']} tokens" in text
    assert text.count("| policy pass |") == 1
    assert text.count("| memory of the policy pass |") == 1
    for title in ("sampled", "means, ccc", "means, crps", "policy, ccc", "TRL"):
        for beta in ("0.04", "0"):
            assert f"| {title} | {beta} | " in text
    ratios = result["of_sampled"]["policy"]
    assert f"| {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |" in text
    assert f"ratio {np.median(result['decoding']['ratios']):.2f} (" in text
    assert ("Short of it: means, ccc with beta 0.04 takes " in text) == short
    assert ("It is not: pass " in text) == short
    assert ("All do." in text) != short
    assert "| vision tower | " in text


def test_tokens_of_a_step_by_hand() -> None:
    case = {"prompt_tokens": 47, "tree_nodes": 102, "generations": 8, "completion_tokens": 6}
    assert decoder_tokens(case, kl=True) == (149 + 149 + 2 * 149, 47 + 48 + 48 + 2 * 95 + 95)
    assert decoder_tokens(case, kl=False) == (149 + 2 * 149, 47 + 48 + 48 + 2 * 95)
