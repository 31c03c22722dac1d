"""The types of the parts of transformers' Trainer that our mixins use, for mypy."""

from typing import TYPE_CHECKING, Any

from transformers import TrainerControl, TrainerState, TrainingArguments


class TrainerHooks:
    """Base class of mixins for a Trainer (transformers 5.23; the hooks are private). Empty at runtime.

    A mixin comes before the trainer among the bases of a class, so that `super()` in the mixin is the trainer.
    """

    if TYPE_CHECKING:
        args: TrainingArguments
        state: TrainerState
        control: TrainerControl
        accelerator: Any
        callback_handler: Any
        model: Any
        processing_class: Any
        is_fsdp_enabled: Any
        optimizer: Any
        lr_scheduler: Any
        _tr_loss: Any
        _globalstep_last_logged: int

        def __init__(self, **kwargs: Any) -> None: ...

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any: ...  # noqa: D102

        def _save_checkpoint(self, model: Any, trial: Any) -> None: ...

        def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any: ...

        def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None: ...

        def _load_callback_state(self) -> None: ...

        def _load_rng_state(self, checkpoint: str | None) -> None: ...

        def create_accelerator_and_postprocess(self) -> None: ...  # noqa: D102

        def compute_loss_context_manager(self) -> Any: ...  # noqa: D102

        def _save_optimizer_and_scheduler(self, output_dir: str) -> None: ...

        def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None: ...

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None: ...

        def _load_best_model(self) -> None: ...

        def _run_epoch(self, **kwargs: Any) -> None: ...

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None: ...  # noqa: D102
