"""Sampling with vLLM, which is not installed here: the arguments that reach it, with a stand-in for TRL's client."""

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
from components.settings import Lora, Vllm
from tests.support.gauge_world import LORA
from tests.support.grpo_training import loss_and_gradients, make_trainer, save_tiny, small_settings, step_batch

VLLM = Vllm(mode="server", memory=0.4, host="rollouts.example", port=8123)


class FakeGeneration:
    """Returns the same answer for every prompt, and records what it gets."""

    instances: ClassVar[list[Any]] = []

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.synced = arguments, 0
        self.prompts: Any = []
        self.images: Any = []
        self.answer = arguments["processing_class"].tokenizer("<answer> 40 </answer>").input_ids
        self.vllm_client = self
        self.instances.append(self)

    def get_server_info(self) -> dict[str, Any]:
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def sync_weights(self) -> None:
        """Merges an adapter while the weights are sent, as `VLLMGeneration._iter_named_params` does."""
        self.synced += 1
        model = self.arguments["model"]
        if hasattr(model, "merge_adapter"):
            model.merge_adapter()
            self.sent = model.get_base_model().state_dict()
            self.sent = {name: weight.clone() for name, weight in self.sent.items()}
            model.unmerge_adapter()

    def generate(self, prompts: Any, images: Any, **_: Any) -> tuple[Any, ...]:
        self.prompts, self.images = prompts, images
        answers = [list(self.answer) for _ in prompts]
        return prompts, answers, [[[-0.5]] * len(answer) for answer in answers], None


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes vLLM look installed."""
    package = types.ModuleType("vllm")
    package.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", FakeGeneration)
    monkeypatch.setattr(FakeGeneration, "instances", [])


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_a_missing_vllm_is_an_error_that_names_its_extra(tmp_path: Path) -> None:
    settings = small_settings(vllm=VLLM)
    with pytest.raises(ConcordError, match=r"grpo\.vllm: vLLM is not installed\. .*pip install '\.\[vllm\]'"):
        training_arguments(settings.grpo, settings, tmp_path, 1)


def test_the_extra_is_declared_and_not_locked() -> None:
    root = Path(__file__).parents[3]
    assert '\nvllm = ["trl[vllm]==1.16.0"]\n' in (root / "pyproject.toml").read_text(encoding="utf-8")
    assert "vllm" not in (root / "requirements.lock").read_text(encoding="utf-8")


@pytest.mark.usefixtures("installed")
def test_answers_of_vllm_are_trained_on_and_placeholders_forbidden(tmp_path: Path) -> None:
    settings = small_settings(vllm=VLLM)
    trainer = make_trainer(save_tiny(settings, tmp_path / "warm"), settings, tmp_path / "out")
    (generation,) = FakeGeneration.instances
    arguments = generation.arguments
    server = arguments["mode"], arguments["server_host"], arguments["server_port"]
    assert server == ("server", "rollouts.example", 8123)
    assert arguments["gpu_memory_utilization"] == 0.4
    assert {"<image>", "<pad>", "<fake_token_around_image>"} <= set(arguments["generation_kwargs"]["bad_words"])
    assert "<end_of_utterance>" not in arguments["generation_kwargs"]["bad_words"]
    assert trainer.shares_prefix, "log-probs still share the prefix"
    assert trainer.sampling_unshared_reason is not None
    assert "vLLM samples them" in trainer.sampling_unshared_reason
    batch = step_batch(trainer)
    assert generation.synced == 1
    assert len(generation.prompts) == len(generation.images) == 6 * 4
    assert {tuple(row) for row in batch["completion_ids"].tolist()} == {tuple(generation.answer)}
    batch["advantages"] = torch.linspace(-1, 1, len(batch["advantages"]))
    _, gradients = loss_and_gradients(trainer, batch)
    assert max(gradient.abs().max() for gradient in gradients.values()) > 0


@pytest.mark.usefixtures("installed")
def test_sending_the_weights_of_an_adapted_model_leaves_its_base_as_it_was(tmp_path: Path) -> None:
    """peft adds the adapter and subtracts it again, which in bfloat16 changes weights."""
    settings = small_settings(vllm=VLLM)
    model = {"dtype": "bfloat16", "lora": Lora.model_validate({**LORA, "dropout": 0.0})}
    settings = settings.model_copy(update={"model": settings.model.model_copy(update=model)})
    trainer = make_trainer(save_tiny(settings, tmp_path / "warm"), settings, tmp_path / "out")
    (generation,) = FakeGeneration.instances
    for weight in (weight for weight in trainer.model.parameters() if weight.requires_grad):
        torch.nn.init.normal_(weight, std=0.1)
    before = {name: weight.clone() for name, weight in trainer.model.get_base_model().state_dict().items()}
    for _ in range(3):
        generation.sync_weights()
    assert any(not torch.equal(weight, before[name]) for name, weight in generation.sent.items()), "nothing was merged"
    after = trainer.model.get_base_model().state_dict()
    assert [name for name, weight in after.items() if not torch.equal(weight, before[name])] == []


def test_without_vllm_sampling_shares_the_prefix(tmp_path: Path) -> None:
    settings = small_settings()
    trainer = make_trainer(save_tiny(settings, tmp_path / "warm"), settings, tmp_path / "out")
    assert trainer.sampling_unshared_reason is None
