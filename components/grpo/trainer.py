"""TRL's GRPOTrainer with rewards over the whole batch, and with each image and prompt encoded once.

The rewards are TRL's reward functions (batch_rewards.py). What is overridden in TRL 1.16, whose version is pinned since
the hooks are private:
- `_generate_and_score_completions` opens the `RolloutBatch` that the other hooks share, and sets the advantages;
- `processing_class` and `_generate_single_turn` process and encode each input once while sampling;
- `_prepare_inputs` splits a step into micro-batches without TRL's shuffle, which would scatter groups over them;
- `_compute_loss` and `_get_per_token_logps_and_entropies` compute log-probs on the shared prefix.
Where the prefix cannot be shared, `_generate_single_turn` and `_get_per_token_logps_and_entropies` call TRL's own.
"""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from components.grpo.advantages import group_advantages
from components.grpo.arguments import SHOWN, common_arguments, uneven
from components.grpo.batch_rewards import BatchRewards, local_rows
from components.grpo.processor_cache import ProcessorCache
from components.grpo.recent_anchors import RecentAnchors, recent_anchors
from components.grpo.rollout_batch import RolloutBatch
from components.grpo.vllm import UNSHARED_REASON, forbid_placeholders, keep_base, vllm_arguments
from components.settings import Grpo, Settings
from components.shared.model.prompts import max_answer_tokens
from components.shared.model.shared_prefix import (
    IMAGE_FIELDS,
    PER_TOKEN,
    Slots,
    encode,
    sample,
    score,
    score_without_cache,
    select,
    unshared_reason,
)
from components.shared.model.suppression import suppress_placeholders
from components.shared.tracking.step_run import StepRun
from components.shared.training.checkpoints import SealedCheckpoints
from components.shared.training.curves import CurveCallback
from components.shared.training.data_wait import TimesDataWait
from components.shared.training.ranks import gathers_whole_passes
from components.shared.training.sharding import ShardedWeights, gathered
from components.shared.training.unused_parameters import look_for_unused
from components.shared.training.validation import ValidatesDistributions


def training_arguments(
    grpo: Grpo, settings: Settings, folder: Path, world_size: int, validated: bool = False
) -> GRPOConfig:
    """Translates our settings into TRL's.

    Args:
        folder: for checkpoints.
        world_size: number of ranks; the inputs of a step are divided among them.
        validated: whether checkpoints are evaluated and the best one is kept.

    Raises:
        ConcordError: the step's completions cannot be divided evenly, or vLLM is asked for and not installed.
    """
    rows = grpo.prompts * grpo.generations
    if rows % (grpo.accumulation * world_size):
        raise uneven(grpo, f"{grpo.prompts} prompts x {grpo.generations} generations", world_size)
    return GRPOConfig(
        per_device_train_batch_size=rows // (grpo.accumulation * world_size),
        per_device_eval_batch_size=grpo.generations,  # TRL requires a multiple; evaluation does not use it
        num_generations=grpo.generations,
        beta=grpo.beta,
        temperature=grpo.temperature,
        loss_type="grpo",
        shuffle_dataset=False,  # the presentations are shuffled already
        **common_arguments(grpo, settings, folder, validated),
        **vllm_arguments(grpo.vllm),
    )


class BatchRewardTrainer(ValidatesDistributions, TimesDataWait, SealedCheckpoints, ShardedWeights, GRPOTrainer):
    """GRPO whose reward compares the whole batch: `ccc`, or `mae`, `mse`, `pearson`, `crps` for comparison.

    Attributes:
        unshared_reason: why the prefix is not shared; None where it is.
        sampling_unshared_reason: why sampling does not share it although the log-probs do; None otherwise.
        shares_prefix: whether it is shared.
    """

    # Attributes of TRL and transformers whose declared types are wider than what they hold after __init__.
    model: Any
    args: Any
    max_completion_length: Any
    _buffered_inputs: Any

    _rollout: RolloutBatch | None = None  # set while TRL samples and scores completions or computes the loss on them

    def __init__(self, *, settings: Settings, **kwargs: Any) -> None:
        """Takes GRPOTrainer's arguments except `reward_funcs`; the length of completions follows from the task."""
        if kwargs["args"].use_vllm:
            forbid_placeholders(kwargs["args"], kwargs["model"], kwargs["processing_class"])
        kwargs["args"].max_completion_length = max_answer_tokens(kwargs["processing_class"], settings.task)
        self._rewards = BatchRewards(settings, lambda: recent_anchors(self))
        super().__init__(reward_funcs=self._rewards.functions, **kwargs)
        self._settings = settings
        self.checkpoint_seconds = 60 * settings.launcher.checkpoint_minutes
        if self.use_vllm and isinstance(self.model, PeftModel):
            keep_base(self.model)
        if recent := settings.grpo.recent:
            self.add_callback(RecentAnchors(recent.inputs, recent.steps))
        if self.ref_model is not None:
            suppress_placeholders(self.accelerator.unwrap_model(self.ref_model), self.processing_class)
        self.unshared_reason = self._unshared_reason()
        self.shares_prefix = self.unshared_reason is None
        self.sampling_unshared_reason = UNSHARED_REASON if self.use_vllm else None
        look_for_unused(self)

    def follow(self, track: StepRun | None) -> None:
        """Sends the training curves to the tracker and shows progress, in place of transformers' printed lines."""
        self.remove_callback(PrinterCallback)
        self.add_callback(CurveCallback(track, SHOWN, self.data_wait))

    def remarks(self) -> list[str]:
        """What a user should know before the training: where the prefix is not shared, and why."""
        known = []
        if self.unshared_reason:
            known.append(f"images are encoded once per answer, not once per input: {self.unshared_reason}")
        if self.sampling_unshared_reason:
            known.append(f"answers are not sampled on a shared prefix: {self.sampling_unshared_reason}")
        return known

    def _unshared_reason(self) -> str | None:
        config = self.accelerator.unwrap_model(self.model).config
        if gathers_whole_passes(self):
            return "FSDP 1 and DeepSpeed gather the weights for whole forward passes, the same number on every rank"
        return unshared_reason(config.model_type, config.get_text_config()._attn_implementation)

    # The rollout: completions, rewards, advantages.

    @property
    def processing_class(self) -> Any:
        """The processor; during a rollout, with its output computed once per input."""
        return self._processor if self._rollout is None else ProcessorCache(self._processor, self._rollout)

    @processing_class.setter
    def processing_class(self, processor: Any) -> None:
        self._processor = processor

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Opens the rollout for the hooks that TRL calls; adds it and our advantages to TRL's batch."""
        grpo, device = self._settings.grpo, self.accelerator.device
        self._rollout = rollout = RolloutBatch.of(inputs, device)
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            self._rollout = None
        scores = self._rewards.scores
        assert scores is not None
        # No option of TRL gives these advantages: it divides by sample deviation + 1e-4, and centres in float32. Reward
        # functions that return scaled values would not be equal to the last bit, and TRL would log those as rewards.
        advantages = group_advantages(scores.rewards, [grpo.reward_weight, grpo.format_weight], grpo.advantage)
        output["advantages"] = torch.tensor(local_rows(advantages, len(inputs)), dtype=torch.float32, device=device)
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in scores.metrics(grpo.reward).items():
            metrics[name].append(value)  # not by TRL's `log_metric`, which rounds to float32
        return {**output, "rollout": rollout}

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """TRL's without the shuffle of rows, so that groups stay together; the presentations are shuffled already."""
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        parts = self.args.steps_per_generation
        if self._step % (parts * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch: Any = self._generate_and_score_completions(generation_batch)
            rollouts = batch.pop("rollout").split(parts)
            tensors: Any = split_tensor_dict(split_pixel_values_by_grid(batch), parts)
            self._buffered_inputs = [
                {**unsplit_pixel_values_by_grid(part), "rollout": rollout}
                for part, rollout in zip(tensors, rollouts, strict=True)
            ]
        return self._buffered_inputs[self._step % parts]

    # The shared prefix, in sampling and in log-probs.

    def _samples_plainly(self) -> bool:
        """Whether the settings ask for the model's own distribution, which is all that `sample` draws from."""
        plain = self.top_p == 1.0 and not self.top_k and self.min_p is None and self.repetition_penalty == 1.0
        return plain and not self.use_vllm

    def _keeps_prefix(self) -> bool:
        """Whether the policy pass may reuse the prefix that sampling encodes.

        The weights must be the same, the rollout must be one batch, nothing may be dropped at random, and the model
        must not be wrapped in DDP, which expects a forward pass of its own.
        """
        drops = any(isinstance(part, torch.nn.Dropout) and part.p for part in self.model.modules())
        one_batch = self.args.steps_per_generation == self.num_iterations == 1
        recomputes = drops or self.args.gradient_checkpointing
        return self.model.training and one_batch and not recomputes and self.accelerator.num_processes == 1

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, has_tool_images: bool = False
    ) -> Any:
        """Samples the completions of each input on its prefix, which is encoded once."""
        rollout = self._rollout
        if not self.shares_prefix or rollout is None or rollout.processed is None or not self._samples_plainly():
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        batch = {name: value.to(self.accelerator.device) for name, value in rollout.processed.items()}
        slots = Slots(rollout.owners, len(batch["input_ids"]))
        model = self.accelerator.unwrap_model(self.model_wrapped)
        keep = self._keeps_prefix()
        with gathered(model), disable_gradient_checkpointing(model, self.args.gradient_checkpointing_kwargs):
            with torch.set_grad_enabled(keep), self.accelerator.autocast():
                prefix = encode(model, batch.pop("input_ids"), batch.pop("attention_mask"), batch)
                rollout.prefix = prefix if keep else None
            with self.accelerator.autocast():
                tokens = sample(
                    model,
                    prefix,
                    slots,
                    self.max_completion_length,
                    self.temperature,
                    self.eos_token_ids,
                    self._tokenizer.pad_token_id,
                )
        ends = set(self.eos_token_ids)
        return [_through_end(row, ends) for row in tokens.tolist()], None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Opens the micro-batch's rollout for the log-probs below."""
        self._rollout = rollout = inputs["rollout"]
        try:
            return super()._compute_loss(model, inputs)
        finally:
            rollout.prefix = None  # a graph goes backward once; another pass on this batch encodes the inputs again
            self._rollout = None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **fields: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Computes log-probs and entropies with each input's prompt encoded once, or taken from the kept prefix."""
        rollout = self._rollout
        one_image = set(fields.get("num_images") or [1]) == {1}
        if not self.shares_prefix or rollout is None or compute_aux_loss or not one_image:
            return super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy,
                compute_aux_loss,
                **fields,
            )
        first, owners = rollout.first_rows()
        length = input_ids.shape[1] - logits_to_keep
        pictures = select({name: fields.get(name) for name in IMAGE_FIELDS}, first)
        for name in set(PER_TOKEN) & pictures.keys():
            pictures[name] = pictures[name][:, :length]
        slots, completions = Slots(owners, len(first)), input_ids[:, length:]
        with self.accelerator.autocast():
            if torch.is_grad_enabled() and rollout.prefix is not None:
                logps, entropy = score(model, rollout.prefix, slots, completions, self.temperature)
            else:
                prompt = input_ids[first, :length], attention_mask[first, :length], pictures
                logps, entropy = score_without_cache(model, *prompt, slots, completions, self.temperature)
        return logps, entropy if compute_entropy else None, None


def _through_end(row: list[int], ends: set[int]) -> list[int]:
    """Cuts the row after its first end token."""
    for i, token in enumerate(row):
        if token in ends:
            return row[: i + 1]
    return row
