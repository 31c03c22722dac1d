"""The settings of the section `model` in training: precision, adapters, frozen tower, attention, compilation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from components.grpo.step import run
from components.grpo.trainer import BatchRewardTrainer, training_arguments
from components.settings import Lora, Settings
from components.sft.step import run as sft_run
from components.sft.trainer import training_arguments as sft_arguments
from components.shared.model.adapter import ADAPTER, WEIGHTS
from components.shared.model.loading import base_model, load, weights_dtype
from components.shared.model.lora import trainable
from tests.support.gauge_world import LORA, Curves, ingested, write_params
from tests.support.grpo_training import loss_and_gradients, make_trainer, save_tiny, small_settings, step_batch

ADAPTED: dict[str, Any] = {"lora": Lora.model_validate(LORA), "freeze_vision": True}


def model_settings(**model: Any) -> Settings:
    settings = small_settings(prompts=2)
    return settings.model_copy(update={"model": settings.model.model_copy(update=model)})


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(small_settings(), tmp_path_factory.mktemp("warm"))


def adapted_trainer(warm: Path, settings: Settings, folder: Path) -> BatchRewardTrainer:
    """A trainer with adapters and a frozen tower, as the step builds it."""
    rows = make_trainer(warm, small_settings(prompts=2), folder / "rows").train_dataset
    model, processor = load(warm, settings.model, weights=weights_dtype(settings.model))
    return BatchRewardTrainer(
        model=trainable(model, settings.model),
        args=training_arguments(settings.grpo, settings, folder, 1),
        train_dataset=rows,
        processing_class=processor,
        settings=settings,
    )


def test_float32_adapters_on_bf16_weights_and_no_gradient_in_the_tower(warm: Path, tmp_path: Path) -> None:
    settings = model_settings(dtype="bfloat16", **ADAPTED)
    trainer = adapted_trainer(warm, settings, tmp_path)
    dtypes = {("lora_" in name, weight.dtype) for name, weight in trainer.model.named_parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    assert trainer.accelerator.mixed_precision == "bf16"
    batch = step_batch(trainer)
    batch["advantages"] = torch.linspace(-1, 1, len(batch["advantages"]))
    activations: list[torch.dtype] = []
    layer = next(part for name, part in trainer.model.named_modules() if name.endswith("text_model.layers.1"))
    hook = layer.register_forward_hook(
        lambda _, __, out: activations.append((out[0] if isinstance(out, tuple) else out).dtype)
    )
    _, gradients = loss_and_gradients(trainer, batch)
    hook.remove()
    assert set(activations) == {torch.bfloat16}
    assert gradients
    assert all("lora_" in name and "vision" not in name for name in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients.values()) > 0


def test_bf16_steps_with_adapters_leave_their_base_unchanged(tmp_path: Path) -> None:
    """Warm start and GRPO train the same adapter of the decoder; the model folders have the same bfloat16 base."""
    ingest = ingested(tmp_path / "world")
    model = {"dtype": "bfloat16", "lora": LORA, "freeze_vision": True}
    sft, grpo = {"max_steps": 2, "eval_every": 2, "lr": 0.02, "warmup_steps": 0}, {"estimator": "means", "steps": 2}
    settings = write_params(tmp_path / "p.yaml", model=model, sft=sft, grpo=grpo)
    start = base_model(settings, ingest)[0].state_dict()
    paths: dict[str, Any] = {"ingest": ingest, "state": tmp_path / "state"}
    track: Any = Curves()
    sft_run(settings, track, validate=ingest, out=tmp_path / "sft", **paths)
    run(settings, track, sft=tmp_path / "sft", out=tmp_path / "grpo", **paths)
    base = load_file(tmp_path / "sft" / "model.safetensors")
    assert base.keys() == start.keys()
    assert all(value.dtype == torch.bfloat16 and torch.equal(value, start[key]) for key, value in base.items())
    bytes_of = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("sft", "grpo")}
    assert bytes_of["sft"] == bytes_of["grpo"], "DVC stores them once"
    warm, best = (load_file(tmp_path / name / ADAPTER / WEIGHTS) for name in ("sft", "grpo"))
    assert warm.keys() == best.keys()
    assert {value.dtype for value in [*warm.values(), *best.values()]} == {torch.float32}
    assert any("text_model" in key for key in warm)
    assert not any("vision" in key for key in warm)
    assert any(not torch.equal(value, best[key]) for key, value in warm.items())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_applies_to_both_towers(attention: str, warm: Path, tmp_path: Path) -> None:
    settings = model_settings(attention=attention)
    config = make_trainer(warm, settings, tmp_path).model.config
    assert config.get_text_config()._attn_implementation == config.vision_config._attn_implementation == attention


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_computes_a_layer_again(checkpointing: bool, warm: Path, tmp_path: Path) -> None:
    """With it, a decoder layer runs once more in the backward pass."""
    settings = small_settings(prompts=2, gradient_checkpointing=checkpointing, beta=0.0, accumulation=2)
    trainer = make_trainer(warm, settings, tmp_path)
    batch = step_batch(trainer)
    batch["advantages"] = torch.linspace(-1, 1, len(batch["advantages"]))
    if checkpointing:
        trainer.model.gradient_checkpointing_enable()  # as `train` does
    calls: list[int] = []
    layer: nn.Module = trainer.model.model.text_model.layers[0].input_layernorm
    hook = layer.register_forward_hook(lambda *_: calls.append(1))
    loss_and_gradients(trainer, batch)
    hook.remove()
    assert len(calls) == 1 + checkpointing


def test_the_setting_compile_reaches_the_arguments() -> None:
    for compiled in (False, True):
        settings = model_settings(compile=compiled)
        assert training_arguments(settings.grpo, settings, Path("out"), 1).torch_compile is compiled
        assert sft_arguments(settings.sft, settings.model, Path("out")).torch_compile is compiled


def test_a_compiled_model_has_the_same_loss_and_gradients(tmp_path: Path) -> None:
    """Traced and run without generating machine code, which would take minutes."""
    tiny = model_settings().model.tiny
    assert tiny is not None
    settings = model_settings(tiny=tiny.model_copy(update={"vision_layers": 1, "text_layers": 1}))
    trainer = make_trainer(save_tiny(settings, tmp_path / "warm"), settings, tmp_path)
    batch = step_batch(trainer)
    batch["advantages"] = torch.linspace(-1, 1, len(batch["advantages"]))
    batch["rollout"].prefix = None
    loss, gradients = loss_and_gradients(trainer, batch)
    plain = trainer.model
    trainer.model = torch.compile(plain, backend="eager")
    try:
        compiled_loss, compiled_gradients = loss_and_gradients(trainer, batch)
    finally:
        trainer.model = plain
        torch.compiler.reset()
    assert compiled_loss == pytest.approx(loss, abs=1e-6)
    assert {f"_orig_mod.{name}" for name in gradients} == compiled_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(compiled_gradients[f"_orig_mod.{name}"], gradient, atol=1e-6, rtol=1e-4)
