"""Run on every rank by test_sharding.py: the same training with whole weights, and with weights divided over the ranks.

torchrun --nproc-per-node 2 -m tests.support.rank_sharding WARM OUT
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers.trainer_utils import SaveStrategy

from components.grpo.trainer import BatchRewardTrainer
from components.settings import Settings
from components.shared.training.ranks import ranks
from components.shared.training.sharding import gathered
from tests.support.grpo_training import ScriptedAnswers, make_exact_trainer, make_trainer, small_settings

CASES = ("float32", "bfloat16", "sampled")  # two dtypes of the exact estimator, and sampled answers


def settings(sharding: str, case: str) -> Settings:
    steps = {"prompts": 8, "steps": 3, "accumulation": 2, "warmup_steps": 1, "lr": 0.001}
    sampled = {"estimator": "sampled", "generations": 2} if case == "sampled" else {}
    chosen = small_settings(**({"estimator": "means", "reward": "crps"} | steps | sampled))
    return chosen.model_copy(
        update={
            "launcher": chosen.launcher.model_copy(update={"sharding": sharding}),
            "model": chosen.model.model_copy(update={"dtype": "bfloat16" if case == "bfloat16" else "float32"}),
        }
    )


class SampledAndScripted(ScriptedAnswers):
    """Samples answers, and then takes the given ones: an untrained model samples no valid answer."""

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        sampled, _ = BatchRewardTrainer._generate_single_turn(self, *args, **kwargs)
        rows = range(len(sampled))
        self.answers = [f"<answer> {(37 * row + 11 * self.state.global_step) % 100} </answer>" for row in rows]
        return super()._generate_single_turn(*args)


def make_sampled_trainer(warm: Path, chosen: Settings, folder: Path, count: int) -> SampledAndScripted:
    trainer: Any = make_trainer(warm, chosen, folder, SampledAndScripted, count)
    trainer.max_completion_length = 12
    return trainer


def own_elements(model: Any) -> int:
    """Elements of the weights that this rank holds."""
    locals_ = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters())
    return sum(weight.numel() for weight in locals_)


def whole(model: Any) -> dict[str, torch.Tensor]:
    """The weights as every rank sees them while they are gathered."""
    with gathered(model):
        return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def train(warm: Path, folder: Path, sharding: str, case: str) -> dict[str, Any]:
    make: Any = make_sampled_trainer if case == "sampled" else make_exact_trainer
    trainer = make(warm, settings(sharding, case), folder, ranks().num_processes)
    begun = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.args.save_strategy = SaveStrategy.NO
    trainer.train()
    before, held = own_elements(trainer.model), whole(trainer.model)
    return {
        "held": before,
        "held after gathering": own_elements(trainer.model),
        "reference": own_elements(trainer.ref_model if case == "sampled" else trainer._reference),
        "optimizer": own_elements_of(trainer.optimizer),
        "weights": held,
        "change": max(float((held[name] - weight).abs().max()) for name, weight in begun.items()),
        "plain": all(not isinstance(weight, DTensor) for weight in held.values()),
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        "shared": trainer.unshared_reason is None,
    }


def own_elements_of(optimizer: Any) -> int:
    """Elements of AdamW's first moments that this rank holds."""
    moments = (state["exp_avg"] for state in optimizer.state.values())
    return sum((moment.to_local() if isinstance(moment, DTensor) else moment).numel() for moment in moments)


def main(warm: str, out: str) -> None:
    ranks()
    found = {
        (sharding, case): train(Path(warm), Path(out) / "state", sharding, case)
        for sharding in ("none", "full")
        for case in CASES
    }
    torch.save(found, Path(out) / f"rank-{ranks().process_index}.pt")
    ranks().wait_for_everyone()


if __name__ == "__main__":
    main(*sys.argv[1:])
