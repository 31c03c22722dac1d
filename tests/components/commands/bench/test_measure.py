"""The GRPO benchmark, on a case too small for meaningful times."""

from pathlib import Path

import pytest

from components.commands.bench.measure import CASES, PHASES, Case, measure
from components.commands.bench.table import write_tables
from tests.support.grpo_training import small_settings


def test_case_changes_only_the_settings_it_names() -> None:
    base = small_settings()
    heavy = CASES["image-heavy"].settings(base)
    assert (heavy.grpo.prompts, heavy.grpo.generations, heavy.grpo.max_new_tokens) == (4, 8, 8)
    assert heavy.model.tiny is not None
    assert base.model.tiny is not None
    assert (heavy.model.tiny.image_size // heavy.model.tiny.patch_size) ** 2 == 256
    assert heavy.model.tiny.text_width == base.model.tiny.text_width
    assert CASES["default"].settings(base) == base


def test_both_trainers_take_the_same_steps(tmp_path: Path) -> None:
    case = Case("a small case", prompts=2, generations=2, max_new_tokens=3)
    result = measure(case, small_settings(beta=0.04), rounds=2)
    p, length = result["prompt_tokens"], result["completion_tokens"]
    assert 1 <= length <= 3
    assert result["limit_language_model"] == pytest.approx(2 * (p + length) / (p + 2 * length))
    assert len(result["ratios"]) == 2
    for which in ("ours", "trl"):
        side = result[which]
        assert len(side["rounds"]) == 2
        for one in side["rounds"]:
            assert set(one) == set(PHASES)
            assert sum(one[phase] for phase in PHASES if phase != "step") <= one["step"]
        assert side["phases"]["step"]["least"] <= side["phases"]["step"]["median"] <= side["phases"]["step"]["most"]
        assert side["policy_pass_bytes"] > 1000
    write_tables(tmp_path / "bench", {"small": result})
    text = (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert "## A small case" in text
    assert f"B 2, G 2, P {p} tokens" in text
    assert text.count("| policy pass |") == 1
