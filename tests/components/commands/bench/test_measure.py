"""The benchmark measures what it says, on a case so small that its figures mean nothing."""

from pathlib import Path

import pytest

from components.commands.bench.measure import CASES, PHASES, Case, measure
from components.commands.bench.table import write_tables
from tests.components.grpo.test_trainer import small_settings


def test_a_case_changes_what_it_names() -> None:
    given = small_settings()
    heavy = CASES["image-heavy"].settings(given)
    assert (heavy.grpo.prompts, heavy.grpo.generations, heavy.grpo.max_new_tokens) == (4, 8, 8)
    assert heavy.model.tiny is not None
    assert given.model.tiny is not None
    assert (heavy.model.tiny.image_size // heavy.model.tiny.patch_size) ** 2 == 256
    assert heavy.model.tiny.text_width == given.model.tiny.text_width
    assert CASES["default"].settings(given) == given


def test_both_trainers_take_the_same_steps(tmp_path: Path) -> None:
    case = Case("a small case", prompts=2, generations=2, max_new_tokens=3)
    found = measure(case, small_settings(beta=0.04), rounds=2)
    p, length = found["prompt_tokens"], found["completion_tokens"]
    assert 1 <= length <= 3
    assert found["limit_language_model"] == pytest.approx(2 * (p + length) / (p + 2 * length))
    assert len(found["ratios"]) == 2
    for which in ("ours", "trl"):
        side = found[which]
        assert len(side["rounds"]) == 2
        for one in side["rounds"]:
            assert set(one) == set(PHASES)
            assert sum(one[phase] for phase in PHASES if phase != "step") <= one["step"]
        assert side["phases"]["step"]["least"] <= side["phases"]["step"]["median"] <= side["phases"]["step"]["most"]
        assert side["policy_pass_bytes"] > 1000
    write_tables(tmp_path / "bench", {"small": found})
    text = (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert "## A small case" in text
    assert f"B 2, G 2, P {p} tokens" in text
    assert text.count("| policy pass |") == 1
