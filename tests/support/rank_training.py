"""Run on every rank by test_ranks.py: rewards and gradients of a step on scripted answers, and of the exact estimators.

torchrun --nproc-per-node 2 -m tests.support.rank_training WARM LLAVA OUT
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import SaveStrategy

from components.grpo.trainer import training_arguments
from components.settings import Recent, Settings
from components.shared.model.loading import load
from components.shared.model.prompts import prompt
from components.shared.training.ranks import ranks
from tests.support.gauge_world import QUESTIONS
from tests.support.grpo_training import (
    ADAPTER,
    GradientRecorder,
    ScriptedAnswers,
    make_exact_trainer,
    noise_pictures,
    small_settings,
)

PROMPTS, GENERATIONS = 9, 4
EXACT_PROMPTS = 24
# The exact estimators by name; each runs with 1 and with 4 micro-batches.
_RECENT = Recent(inputs=30, steps=5)
EXACT: dict[str, dict[str, Any]] = {
    "means": {"estimator": "means", "reward": "ccc", "balance": 0.5, "recent": _RECENT},
    "crps": {"estimator": "means", "reward": "crps", "balance": 0.5},
    "adapters": {"estimator": "means", "reward": "crps", "balance": 0.5},
    "policy": {"estimator": "policy", "reward": "ccc", "advantage": "batch", "recent": _RECENT},
}
ACCUMULATIONS = (1, 4)


def settings() -> Settings:
    return small_settings(prompts=PROMPTS, generations=GENERATIONS, steps=1, beta=0.0)


def answer(target: float, copy: int) -> str:
    """The answer of a copy of an input: its error grows with `copy`; the last copy of every other input is invalid."""
    if copy == GENERATIONS - 1 and target % 2:
        return "no idea"
    return f"<answer> {min(int(target) + 3 * copy, 99)} </answer>"


def searches(trainer: Any) -> bool:
    """Whether DDP looks for unused parameters in each step. torchrun wraps one rank in DDP too."""
    return bool(trainer.model_wrapped.find_unused_parameters)


def exact_gradients(warm: Path, folder: Path) -> dict[tuple[str, int], Any]:
    """Gradients and rewards of two optimizer steps of each exact estimator, by its name and the micro-batches."""
    found = {}
    for name, grpo in EXACT.items():
        for accumulation in ACCUMULATIONS:
            # The learning rate is 0 in the first of the warm-up steps: both steps have the same weights.
            chosen = small_settings(**grpo, prompts=EXACT_PROMPTS, steps=2, accumulation=accumulation)
            chosen = chosen.model_copy(
                update={"model": chosen.model.model_copy(update={"lora": ADAPTER if name == "adapters" else None})}
            )
            trainer = make_exact_trainer(warm, chosen, folder, ranks().num_processes)
            recorder = GradientRecorder(trainer)
            trainer.args.save_strategy = SaveStrategy.NO
            trainer.train()
            rewards = [line[f"reward/{chosen.grpo.reward}"] for line in trainer.state.log_history[:2]]
            found[name, accumulation] = {
                "gradients": recorder.steps,
                "rewards": rewards,
                "shared": trainer.unshared_reason is None,
                "searches": searches(trainer),
            }
    return found


def llava_gradients(llava: Path, folder: Path) -> dict[str, Any]:
    """Gradients of a model whose vision tower ends in layers without a use."""
    chosen = small_settings(**EXACT["crps"], prompts=EXACT_PROMPTS, steps=1)
    trainer = make_exact_trainer(llava, chosen, folder, ranks().num_processes)
    recorder = GradientRecorder(trainer)
    trainer.args.save_strategy = SaveStrategy.NO
    trainer.train()
    return {"gradients": recorder.steps[0], "searches": searches(trainer)}


def main(warm: str, llava: str, out: str) -> None:
    from datasets import Dataset

    state, chosen = ranks(), settings()
    model, processor = load(Path(warm), chosen.model)
    images = noise_pictures(PROMPTS)
    rows = Dataset.from_dict({"position": range(PROMPTS)}).with_transform(
        lambda batch: {
            "prompt": [prompt(QUESTIONS[k % 3]) for k in batch["position"]],
            "image": [images[k] for k in batch["position"]],
            "target": [float(11 * k) for k in batch["position"]],
            "shot": ["many" if k % 2 else "few" for k in batch["position"]],
        }
    )
    arguments = training_arguments(chosen.grpo, chosen, Path(out) / "state", state.num_processes)
    trainer = ScriptedAnswers(
        model=model, args=arguments, train_dataset=rows, processing_class=processor, settings=chosen
    )
    trainer.max_completion_length = 12
    count = PROMPTS * GENERATIONS // state.num_processes
    own_rows = range(state.process_index * count, (state.process_index + 1) * count)
    targets: list[float] = []
    generate_and_score = trainer._generate_and_score_completions

    def with_answers(inputs: list[dict[str, Any]]) -> dict[str, Any]:
        targets.extend(row["target"] for row in inputs)
        trainer.answers = [
            answer(row["target"], index % GENERATIONS) for row, index in zip(inputs, own_rows, strict=True)
        ]
        return generate_and_score(inputs)

    trainer._generate_and_score_completions = with_answers  # type: ignore[method-assign]
    trainer.model.train()
    trainer.model_wrapped = trainer.accelerator.prepare(trainer.model)
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss = trainer.compute_loss(trainer.model_wrapped, batch)
    trainer.accelerator.backward(loss)
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    results = {
        "targets": targets,
        "advantages": batch["advantages"],
        "gradients": gradients,
        "shared": trainer.shares_prefix,
        "searches": searches(trainer),
        "exact": exact_gradients(Path(warm), Path(out) / "state"),
        "llava": llava_gradients(Path(llava), Path(out) / "state"),
    }
    torch.save(results, Path(out) / f"rank-{state.process_index}.pt")
    state.wait_for_everyone()


if __name__ == "__main__":
    main(*sys.argv[1:])
