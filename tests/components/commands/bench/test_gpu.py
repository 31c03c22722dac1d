"""The GPU benchmark, on a machine without one: a tiny model takes the same code path."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from components.commands.bench.command import main
from components.commands.bench.gpu_measure import RESUME_STEPS, WITHOUT_GPU, GpuBench, run_parts
from components.commands.bench.gpu_model import QWEN_3B, TINY, build_qwen, build_stand_in
from components.commands.bench.gpu_packages import PACKAGES, pinned
from components.errors import ConcordError
from components.settings import load_settings
from components.shared.model.answer_tree import answer_tree
from components.shared.model.device import on_accelerator
from components.shared.model.generation import prepared
from components.shared.model.prompts import prompt_with_image
from tests.support.qwen_folder import BILLIONS, TEXT, VISION
from tests.support.raw_folder import ROOT

pytestmark = pytest.mark.skipif(on_accelerator(), reason="measures a tiny model, on a CPU")


@pytest.fixture(autouse=True)
def environment_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores HF_HUB_OFFLINE, which the command sets for its process."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_dimensions_are_the_published_ones() -> None:
    published = TEXT["3b"]
    assert (QWEN_3B.width, QWEN_3B.inner, QWEN_3B.layers) == (
        published["hidden_size"], published["intermediate_size"], published["num_hidden_layers"],
    )  # fmt: skip
    assert (QWEN_3B.heads, QWEN_3B.groups, QWEN_3B.vocabulary) == (
        published["num_attention_heads"], published["num_key_value_heads"], published["vocab_size"],
    )  # fmt: skip
    assert (QWEN_3B.vision_width, QWEN_3B.vision_inner, QWEN_3B.vision_layers, QWEN_3B.vision_heads) == (
        VISION["hidden_size"], VISION["intermediate_size"], VISION["depth"], VISION["num_heads"],
    )  # fmt: skip
    assert list(QWEN_3B.full) == VISION["fullatt_block_indexes"]
    with torch.device("meta"):
        model = build_qwen(QWEN_3B, build_stand_in("How full is it?"), "bfloat16", torch.device("meta"))
    assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(BILLIONS["3b"], abs=0.01)


def test_stand_in_cuts_digits_and_tags_as_qwen_does() -> None:
    settings = load_settings(ROOT / "params.yaml")
    processor = build_stand_in(settings.task.question)
    tokens = processor.tokenizer.tokenize("<answer> 35 </answer><|im_end|>")
    assert tokens == ["<", "answer", ">", "Ġ", "3", "5", "Ġ</", "answer", ">", "<|im_end|>"]
    assert answer_tree(processor, settings.task).nodes == 105
    model = build_qwen(TINY, processor, "float32", torch.device("cpu"))
    images = [Image.new("RGB", size) for size in ((112, 112), (56, 112))]
    batch = prepared(model, processor, images, [settings.task.question] * 2)
    assert (batch["input_ids"] == processor.image_token_id).sum(dim=1).tolist() == [16, 8]
    assert (batch["mm_token_type_ids"] == 1).sum(dim=1).tolist() == [16, 8]
    text = processor.apply_chat_template(prompt_with_image("So?"), add_generation_prompt=True, tokenize=False)
    assert text.count("<|image_pad|>") == 1


def test_model_is_the_same_each_time_and_leaves_the_random_numbers_alone() -> None:
    processor, cpu = build_stand_in("How full is it?"), torch.device("cpu")
    torch.manual_seed(5)
    first = build_qwen(TINY, processor, "bfloat16", cpu)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    second = build_qwen(TINY, processor, "bfloat16", cpu)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_command_measures_every_part_on_a_tiny_model(tmp_path: Path) -> None:
    out = tmp_path / "bench-gpu"
    main(["gpu", "--params", str(ROOT / "params.yaml"), "--out", str(out)])
    results = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    text = out.with_suffix(".md").read_text(encoding="utf-8")
    assert results["device"] == {"name": "CPU", "gpu": False}
    assert "This machine has no GPU" in text
    assert "Not measured" not in text
    assert all("skipped" not in part for part in results["parts"].values())
    for name in ("steps-g4", "steps-g8"):
        check_steps(results["parts"][name], text)
    decoding = results["parts"]["decoding"]
    assert decoding["profiles"]["tree"][2]["tokens"] == results["parts"]["steps-g4"]["prompt_tokens"]
    assert sum(part["tokens"] for part in decoding["profiles"]["tree"][3:]) == decoding["nodes"]
    assert f"ratio {np.median(decoding['ratios']):.2f} (" in text
    pairs = results["parts"]["agreement"]["pairs"]
    assert len(pairs) == 7
    assert all(gap["largest"] < (1e-4 if "bfloat16" not in pair else 0.1) for pair, gap in pairs.items())
    assert all(f"| {pair} | {gap['largest']:.2g} |" in text for pair, gap in pairs.items())
    assert results["parts"]["resume"]["largest_difference"] == 0
    assert f"{RESUME_STEPS} steps of `means`" in text
    assert "the same weights, to the bit" in text


def check_steps(part: dict[str, Any], text: str) -> None:
    assert f"G {part['generations']}, P {part['prompt_tokens']}" in text
    steps = {name: np.array([one["step"] for one in side["rounds"]]) for name, side in part["sides"].items()}
    assert part["ratios"]["trl_over_sampled"] == pytest.approx(steps["trl"] / steps["sampled"])
    assert part["ratios"]["exact_of_sampled"] == pytest.approx(steps["means-ccc"] / steps["sampled"])
    assert part["ratios"]["trl_over_exact"] == pytest.approx(steps["trl"] / steps["means-ccc"])
    assert f"{np.median(part['ratios']['exact_of_sampled']):.2f} (" in text
    assert all(side["peak_bytes"] > 1000 for side in part["sides"].values())


def test_parts_beyond_the_limit_and_failed_ones_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = GpuBench(WITHOUT_GPU, load_settings(ROOT / "params.yaml"), tmp_path)

    def fails(_: float) -> dict[str, Any]:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB\nmore")

    def slow(_: float) -> dict[str, Any]:
        time.sleep(0.3)
        return {"figure": 1}

    monkeypatch.setattr(bench, "parts", lambda: {"slow": slow, "late": slow})
    found = dict(run_parts(bench, limit=0.25))
    assert found["slow"]["figure"] == 1
    assert "limit" in found["late"]["skipped"]
    monkeypatch.setattr(bench, "parts", lambda: {"fails": fails, "next": slow})
    found = dict(run_parts(bench, limit=60))
    assert found["fails"]["skipped"] == "OutOfMemoryError: tried to allocate 9 GiB"
    assert found["next"]["figure"] == 1


def test_results_of_a_gpu_are_not_overwritten_without_one(tmp_path: Path) -> None:
    earlier = tmp_path / "bench-gpu.json"
    earlier.write_text(json.dumps({"device": {"name": "H100", "gpu": True}}), encoding="utf-8")
    with pytest.raises(ConcordError, match=r"measured on H100; this machine has no GPU. Give another --out"):
        main(["gpu", "--params", str(ROOT / "params.yaml"), "--out", str(tmp_path / "bench-gpu")])


def test_packages_have_the_versions_and_hashes_of_the_lock() -> None:
    lines = pinned(PACKAGES).splitlines()
    assert [line.partition("==")[0] for line in lines if not line.startswith(" ")] == list(PACKAGES)
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert set(lines) < set(lock)
    assert len(lines) > 2 * len(PACKAGES)
    with pytest.raises(ConcordError, match="lacks nonesuch"):
        pinned(("trl", "nonesuch"))
