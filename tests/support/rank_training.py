"""Run on every rank by test_ranks.py: one optimizer step's rewards and gradients, on completions that are given.

torchrun --nproc-per-node 2 -m tests.support.rank_training WARM OUT
"""

import sys
from pathlib import Path
from typing import Any

import torch

from components.grpo.trainer import BatchRewardTrainer, training_arguments
from components.settings import Settings
from components.shared.model.loading import load
from components.shared.model.prompts import prompt
from components.shared.training.ranks import ranks
from tests.components.grpo.test_trainer import QUESTIONS, pictures, small_settings

PROMPTS, GENERATIONS = 9, 4


def settings() -> Settings:
    return small_settings(prompts=PROMPTS, generations=GENERATIONS, steps=1, beta=0.0)


def given_answer(target: float, copy: int) -> str:
    """What the policy is made to have said: off by more with every copy; the last copy of every other input babbles."""
    if copy == GENERATIONS - 1 and target % 2:
        return "no idea"
    return f"<answer> {min(int(target) + 3 * copy, 99)} </answer>"


class GivenAnswers(BatchRewardTrainer):
    """The trainer, with the draw of the completions taken out of chance's hands. Rows are known by their place."""

    given: list[str]

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        ids = self._tokenizer(self.given, add_special_tokens=False)["input_ids"]
        return [[*row, self._tokenizer.eos_token_id][: self.max_completion_length] for row in ids], None


def main(warm: str, out: str) -> None:
    from datasets import Dataset

    state, chosen = ranks(), settings()
    model, processor = load(Path(warm), chosen.model)
    images = pictures(PROMPTS)
    rows = Dataset.from_dict({"position": range(PROMPTS)}).with_transform(
        lambda batch: {
            "prompt": [prompt(QUESTIONS[k % 3]) for k in batch["position"]],
            "image": [images[k] for k in batch["position"]],
            "target": [float(11 * k) for k in batch["position"]],
            "shot": ["many" if k % 2 else "few" for k in batch["position"]],
        }
    )
    arguments = training_arguments(chosen.grpo, chosen, Path(out) / "state", state.num_processes)
    trainer = GivenAnswers(model=model, args=arguments, train_dataset=rows, processing_class=processor, settings=chosen)
    trainer.max_completion_length = 12
    each = PROMPTS * GENERATIONS // state.num_processes
    mine = range(state.process_index * each, (state.process_index + 1) * each)
    order: list[float] = []
    prepare = trainer._generate_and_score_completions

    def prepared(inputs: list[dict[str, Any]]) -> dict[str, Any]:
        order.extend(row["target"] for row in inputs)
        trainer.given = [
            given_answer(row["target"], place % GENERATIONS) for row, place in zip(inputs, mine, strict=True)
        ]
        return prepare(inputs)

    trainer._generate_and_score_completions = prepared
    trainer.model.train()
    trainer.model_wrapped = trainer.accelerator.prepare(trainer.model)
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss = trainer.compute_loss(trainer.model_wrapped, batch)
    trainer.accelerator.backward(loss)
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    found = {"targets": order, "advantages": batch["advantages"], "gradients": gradients, "shared": trainer.sharing}
    torch.save(found, Path(out) / f"rank-{state.process_index}.pt")
    state.wait_for_everyone()


if __name__ == "__main__":
    main(*sys.argv[1:])
