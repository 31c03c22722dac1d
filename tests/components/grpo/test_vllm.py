"""vLLM for the rollout. It is not here: what TRL is told of it is tested with a stand-in for TRL's way to it."""

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from components.errors import ConcordError
from components.grpo.trainer import training_arguments
from components.settings import Settings, Vllm
from components.shared.model.loading import save
from components.shared.model.tiny import build_model, build_processor
from tests.components.grpo.test_trainer import QUESTIONS, loss_and_gradients, make_trainer, small_settings, step_batch

VLLM = Vllm(mode="server", memory=0.4, host="rollouts.example", port=8123)


class Rollouts:
    """Draws the same answer for everybody, and remembers what it was asked."""

    made: ClassVar[list[Any]] = []

    def __init__(self, **told: Any) -> None:
        self.told, self.synced, self.prompts, self.images = told, 0, [], []
        self.answer = told["processing_class"].tokenizer("<answer> 40 </answer>").input_ids
        self.vllm_client = self
        self.made.append(self)

    def get_server_info(self) -> dict[str, Any]:
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def sync_weights(self) -> None:
        self.synced += 1

    def generate(self, prompts: Any, images: Any, **_: Any) -> tuple[Any, ...]:
        self.prompts, self.images = prompts, images
        answers = [list(self.answer) for _ in prompts]
        return prompts, answers, [[[-0.5]] * len(answer) for answer in answers], None


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if vLLM were there."""
    package = types.ModuleType("vllm")
    package.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Rollouts)
    monkeypatch.setattr(Rollouts, "made", [])


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_an_absent_vllm_is_named_with_its_extra(tmp_path: Path) -> None:
    settings = small_settings(vllm=VLLM)
    with pytest.raises(ConcordError, match=r"grpo\.vllm: vLLM is not installed\. .*pip install '\.\[vllm\]'"):
        training_arguments(settings.grpo, settings, tmp_path, 1)


def test_the_extra_is_there_and_is_not_locked() -> None:
    root = Path(__file__).parents[3]
    assert '\nvllm = ["trl[vllm]==1.16.0"]\n' in (root / "pyproject.toml").read_text(encoding="utf-8")
    assert "vllm" not in (root / "requirements.lock").read_text(encoding="utf-8")


def warm(settings: Settings, folder: Path) -> Path:
    processor = build_processor(settings.model.tiny, QUESTIONS)  # type: ignore[arg-type]
    save(build_model(settings.model.tiny, processor, seed=3), processor, folder)  # type: ignore[arg-type]
    return folder


@pytest.mark.usefixtures("installed")
def test_its_answers_are_learned_from_and_placeholders_forbidden(tmp_path: Path) -> None:
    settings = small_settings(vllm=VLLM)
    trainer = make_trainer(warm(settings, tmp_path / "warm"), settings, tmp_path / "out")
    (rollouts,) = Rollouts.made
    told = rollouts.told
    assert (told["mode"], told["server_host"], told["server_port"]) == ("server", "rollouts.example", 8123)
    assert told["gpu_memory_utilization"] == 0.4
    assert {"<image>", "<pad>", "<fake_token_around_image>"} <= set(told["generation_kwargs"]["bad_words"])
    assert "<end_of_utterance>" not in told["generation_kwargs"]["bad_words"]
    assert trainer.sharing, "log-probs go on sharing the prefix"
    assert trainer.unshared_in_sampling is not None
    assert "vLLM draws them" in trainer.unshared_in_sampling
    batch = step_batch(trainer)
    assert rollouts.synced == 1
    assert len(rollouts.prompts) == len(rollouts.images) == 6 * 4
    assert {tuple(row) for row in batch["completion_ids"].tolist()} == {tuple(rollouts.answer)}
    batch["advantages"] = torch.linspace(-1, 1, len(batch["advantages"]))
    _, gradients = loss_and_gradients(trainer, batch)
    assert max(gradient.abs().max() for gradient in gradients.values()) > 0


def test_without_it_sampling_shares_the_prefix(tmp_path: Path) -> None:
    settings = small_settings()
    assert make_trainer(warm(settings, tmp_path / "warm"), settings, tmp_path / "out").unshared_in_sampling is None
