"""The exact trainer: micro-batches, dropout, adapters, precision, and models whose prefix cannot be shared."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.trainer_utils import SaveStrategy

from components.errors import ConcordError
from components.grpo.exact_trainer import ExactTrainer, exact_arguments
from components.settings import Lora, Settings
from tests.support.gauge_world import LORA
from tests.support.grpo_training import (
    GradientRecorder,
    assert_near,
    make_exact_trainer,
    save_llava,
    save_tiny,
    small_settings,
)

DROPPED: dict[str, Any] = {"lora": Lora.model_validate({**LORA, "dropout": 0.3}), "freeze_vision": True}


def settings_of(model: dict[str, Any] | None = None, **grpo: Any) -> Settings:
    made = small_settings(**{"estimator": "means", "steps": 1, **grpo})
    return made.model_copy(update={"model": made.model.model_copy(update=model or {})})


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(small_settings(), tmp_path_factory.mktemp("warm"))


def gradients(trainer: ExactTrainer) -> dict[str, Tensor]:
    """Of the first optimizer step; the weights do not change in it, since it is a step of the warm-up."""
    recorder = GradientRecorder(trainer)
    trainer.args.save_strategy = SaveStrategy.NO
    trainer.train()
    return recorder.steps[0]


class Recording(ExactTrainer):
    """Keeps all log-probabilities that the model computes in training: with gradient, and looking ahead."""

    passes: list[tuple[bool, Tensor]]

    def _log_probs(self, model: Any, batch: Any) -> Tensor:
        found = super()._log_probs(model, batch)
        if model.training:
            self.passes.append((torch.is_grad_enabled(), found.detach()))
        return found


def disturb_adapters(trainer: ExactTrainer) -> None:
    """Adapters start without effect, and so does their dropout."""
    for parameter in (p for p in trainer.model.parameters() if p.requires_grad):
        torch.nn.init.normal_(parameter, std=0.1)


def test_looking_ahead_drops_the_same_as_the_passes_that_follow(warm: Path, tmp_path: Path) -> None:
    settings = settings_of(DROPPED, accumulation=3)
    trainer = make_exact_trainer(warm, settings, tmp_path, kind=Recording)
    assert isinstance(trainer, Recording)
    trainer.passes = []
    disturb_adapters(trainer)
    gradients(trainer)
    assert [with_gradient for with_gradient, _ in trainer.passes] == [True, False, False, True, True]
    for early, late in zip(trainer.passes[1:3], trainer.passes[3:], strict=True):
        assert torch.equal(early[1], late[1])


def test_dropout_drops(warm: Path, tmp_path: Path) -> None:
    """Otherwise the test above shows nothing."""
    trainer = make_exact_trainer(warm, settings_of(DROPPED), tmp_path)
    disturb_adapters(trainer)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.train()
    with torch.no_grad():
        assert not torch.equal(trainer._log_probs(trainer.model, batch), trainer._log_probs(trainer.model, batch))


def test_no_look_ahead_where_images_are_not_compared(warm: Path, tmp_path: Path) -> None:
    trainer = make_exact_trainer(warm, settings_of(reward="crps", accumulation=3), tmp_path, kind=Recording)
    assert isinstance(trainer, Recording)
    trainer.passes = []
    gradients(trainer)
    assert [with_gradient for with_gradient, _ in trainer.passes] == [True] * 3


def test_the_reference_is_the_model_before_training(warm: Path, tmp_path: Path) -> None:
    """With adapters that training has moved, the KL is that to a plain copy of the warm start."""
    adapted, plain = (
        make_exact_trainer(warm, settings_of(model), tmp_path / name)
        for name, model in (("adapted", DROPPED), ("plain", {}))
    )
    batch = adapted._prepare_inputs(next(iter(adapted.get_train_dataloader())))
    disturb_adapters(adapted)
    adapted.model.train()
    found = adapted._reference_log_probs(adapted.model, [batch])
    torch.testing.assert_close(found, plain._reference_log_probs(plain.model, [batch]), atol=1e-6, rtol=0)
    assert adapted.model.training
    with torch.no_grad():
        assert (adapted._log_probs(adapted.model, batch) - found[0]).abs().max() > 1e-3


@pytest.mark.parametrize("estimator", ["means", "policy"])
def test_gradient_checkpointing_gives_the_same_gradients(estimator: str, warm: Path, tmp_path: Path) -> None:
    for name, model in (("full", {}), ("lora", DROPPED)):
        plain, checkpointed = (
            gradients(
                make_exact_trainer(
                    warm,
                    settings_of(model, estimator=estimator, gradient_checkpointing=checkpointing),
                    tmp_path / f"{name}-{checkpointing}",
                )
            )
            for checkpointing in (False, True)
        )
        assert_near(checkpointed, plain)


def test_a_model_whose_prefix_cannot_be_shared_has_the_same_gradients(tmp_path: Path) -> None:
    settings = settings_of(prompts=3)
    settings = settings.model_copy(update={"task": settings.task.model_copy(update={"high": 4.0})})
    warm = save_llava(tmp_path / "llava", settings)
    shared, apart = (make_exact_trainer(warm, settings, tmp_path / name) for name in ("shared", "apart"))
    assert shared.remarks() == []
    apart.unshared_reason = "a test"
    assert apart.remarks() == ["each of the 5 numbers is scored in a row of its own: a test"]
    assert_near(gradients(apart), gradients(shared), 1e-4)


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
def test_bf16(adapters: bool, tmp_path: Path) -> None:
    """The losses are computed in float64 from log-probabilities in float32."""
    model = {"dtype": "bfloat16", **(DROPPED if adapters else {})}
    settings = settings_of(model, accumulation=3)
    trainer = make_exact_trainer(save_tiny(settings, tmp_path / "warm"), settings, tmp_path, kind=Recording)
    assert isinstance(trainer, Recording)
    trainer.passes = []
    found = gradients(trainer)
    assert {log_p.dtype for _, log_p in trainer.passes} == {torch.float32}
    assert all(value.isfinite().all() for value in found.values())
    assert sum(float(value.abs().sum()) for value in found.values()) > 0
    (line,) = [line for line in trainer.state.log_history if "kl" in line]
    assert line["kl"] == pytest.approx(0, abs=1e-3)


def test_inputs_that_cannot_be_divided_evenly() -> None:
    settings = settings_of(prompts=6, accumulation=4)
    with pytest.raises(
        ConcordError, match=r"grpo: 6 prompts .* 4 accumulation x 3 ranks. Make prompts a multiple of 12"
    ):
        exact_arguments(settings.grpo, settings, Path("out"), 3)
