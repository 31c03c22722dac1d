"""Whether the warm start has learned anything: its validation answers must be clearly better than the best constant.

On a plateau the model answers the same number to every image and validation MAE only wanders. Training goes on there;
where it ends there, that is reported before anything is built on it.
"""

from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerState

from components.console import console
from components.errors import ConcordError
from components.settings import Settings, Task

SHOWN_BY = "val_skill_low"  # the lower end of the 95 % interval of `val_skill`, in the log of each evaluation


class PatienceOnceSkilled(EarlyStoppingCallback):
    """Early stopping that counts only from the first evaluation with a skill that is shown."""

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, metrics: Any, **kwargs: Any) -> None:
        """Leaves the patience unused before; the trainer has logged the evaluation's figures already."""
        if any(line.get(SHOWN_BY, -1.0) > 0 for line in state.log_history):
            super().on_evaluate(args, state, control, metrics, **kwargs)


def kept_evaluation(state: TrainerState) -> dict[str, float]:
    """The logged figures of the checkpoint that is kept."""
    return next(line for line in state.log_history if line["step"] == state.best_global_step and "val_mae" in line)


def check_skill(settings: Settings, state: TrainerState) -> None:
    """Reports that nothing was learned, where the kept evaluation does not show any skill.

    Raises:
        ConcordError: so it is, and `sft.no_skill` is error.
    """
    kept = kept_evaluation(state)
    if kept.get(SHOWN_BY, -1.0) > 0:
        return
    text = _nothing_learned(kept, settings.task, state)
    if settings.sft.no_skill == "error":
        raise ConcordError(
            f"{text}\nThe weights of step {kept['step']:g} stay in {Path(str(state.best_model_checkpoint))}. "
            "sft.no_skill: warning takes them without training again."
        )
    console.print(f"warning: {text}")


def _nothing_learned(kept: dict[str, float], task: Task, state: TrainerState) -> str:
    unit = f" {task.unit}".rstrip()
    bound = f", its 95 % interval from {kept[SHOWN_BY]:.2f}" if SHOWN_BY in kept else ""
    return (
        f"sft learned nothing that validation shows: after {state.global_step} steps the best MAE is "
        f"{kept['val_mae']:.3g}{unit}, and {kept['val_constant_mae']:.3g} if every answer is the same number (skill "
        f"{kept['val_skill']:.2f}{bound}; {100 * kept['val_unparseable']:.3g} % of the answers are invalid, sd ratio "
        f"{kept['val_sd_ratio']:.2f}).\nTry more steps (sft.max_steps), another sft.lr or warmup_steps, more "
        "validation images (sft.eval_rows), a larger image or model (model.tiny), or a pretrained model (model.name). "
        "curve.csv or MLflow show whether the loss still falls."
    )
