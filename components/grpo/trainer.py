"""TRL's GRPOTrainer with batch-level rewards, and with each image encoded once.

What differs from TRL 1.16 (the version is pinned; the hooks are private):
- `_calculate_rewards` gathers predictions and targets over all ranks first and joins the groups, so that a reward that
  compares the whole minibatch does not depend on the world size;
- advantages scale each reward on its own, in-group or over the batch;
- micro-batches keep groups together;
- sampling and log-probs share the prefix (components/grpo/shared_prefix.py) where the model and the settings
  allow it, and the processor does each input once (once.py).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather, gather_object
from torch import Tensor
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from components.errors import ConcordError
from components.grpo.advantages import group_advantages
from components.grpo.processor_cache import OncePerInput
from components.grpo.recent_anchors import RecentAnchors
from components.grpo.rewards import format_reward, regression_reward
from components.grpo.shared_prefix import (
    IMAGE_FIELDS,
    PER_TOKEN,
    Prefix,
    Slots,
    encode,
    obstacle,
    sample,
    score,
    score_whole,
    select,
)
from components.grpo.vllm import UNSHARED, forbid_placeholders, vllm_arguments
from components.settings import Grpo, Settings
from components.shared.io.atomic import write_json
from components.shared.model.device import on_accelerator
from components.shared.model.suppression import suppress_placeholders
from components.shared.scoring.answers import parse_answers
from components.shared.scoring.shots import SHOTS
from components.shared.tracking.step_run import StepRun
from components.shared.training.checkpoints import SealedCheckpoints
from components.shared.training.curves import Follow
from components.shared.training.data_wait import WaitsForData
from components.shared.training.ranks import spread

RECENT = "recent_anchors.json"  # in a checkpoint


def training_arguments(grpo: Grpo, settings: Settings, folder: Path, world_size: int) -> GRPOConfig:
    """Our settings in TRL's words.

    Args:
        world_size: number of ranks; the inputs of a step are shared out among them.

    Raises:
        ConcordError: the step's completions cannot be shared out evenly, or vLLM is asked for and not installed.
    """
    rows = grpo.prompts * grpo.generations
    if rows % (grpo.accumulation * world_size):
        raise ConcordError(
            f"grpo: {grpo.prompts} prompts x {grpo.generations} generations cannot be shared out evenly over "
            f"{grpo.accumulation} accumulation x {world_size} ranks. Make prompts a multiple of "
            f"{grpo.accumulation * world_size}."
        )
    return GRPOConfig(
        output_dir=str(folder),
        max_steps=grpo.steps,
        per_device_train_batch_size=rows // (grpo.accumulation * world_size),
        gradient_accumulation_steps=grpo.accumulation,
        num_generations=grpo.generations,
        learning_rate=grpo.lr,
        lr_scheduler_type="linear",
        warmup_steps=grpo.warmup_steps,
        weight_decay=0.0,
        beta=grpo.beta,
        temperature=grpo.temperature,
        max_completion_length=grpo.max_new_tokens,
        loss_type="grpo",
        shuffle_dataset=False,  # the presentations are a shuffle already
        save_strategy="steps",
        save_steps=grpo.checkpoint_every,
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        use_cpu=not on_accelerator(),
        seed=grpo.seed,
        bf16=settings.model.dtype == "bfloat16",
        torch_compile=settings.model.compile,
        gradient_checkpointing=grpo.gradient_checkpointing,
        remove_unused_columns=False,
        dataloader_num_workers=settings.launcher.loader_workers,
        **vllm_arguments(grpo.vllm),
    )


class BatchRewardTrainer(WaitsForData, SealedCheckpoints, GRPOTrainer):
    """GRPO whose reward sees the whole minibatch: `ccc`, or `mae`, `mse`, `pearson` for ablations."""

    # TRL's and transformers' own, whose declared types are looser than what stands there once they are set up.
    model: Any
    args: Any
    max_completion_length: Any
    _buffered_inputs: Any
    processing_class: Any

    def __init__(self, *, settings: Settings, **kwargs: Any) -> None:
        """Takes GRPOTrainer's arguments but `reward_funcs`."""
        if kwargs["args"].use_vllm:
            forbid_placeholders(kwargs["args"], kwargs["model"], kwargs["processing_class"])
        super().__init__(reward_funcs=[_regression, _format], **kwargs)
        self._settings = settings
        if self.ref_model is not None:
            suppress_placeholders(self.accelerator.unwrap_model(self.ref_model), self.processing_class)
        self.unshared = self._obstacle()
        self.sharing = self.unshared is None
        recent = settings.grpo.recent
        self._recent = RecentAnchors(recent.inputs, recent.steps) if recent else None
        self.unshared_in_sampling = UNSHARED if self.use_vllm else None
        self._owners: Tensor | None = None
        self._kept: Prefix | None = None  # encoded while sampling, for the next policy pass
        self._given: Prefix | None = None  # the same, during that pass
        self._advantages: Tensor | None = None

    def follow(self, track: StepRun | None) -> None:
        """Sends the curves to the tracker."""
        self.remove_callback(PrinterCallback)
        shown = ("reward/ccc", "reward/mae", "batch_mae/all", "invalid", "sd_ratio", "kl")
        self.add_callback(Follow(track, shown, self.waiting))

    def _obstacle(self) -> str | None:
        """Why the prefix cannot be shared, in words; None where it can."""
        config = self.accelerator.unwrap_model(self.model).config
        if spread(self):
            return "FSDP and DeepSpeed gather the weights for whole forward passes, the same number on every rank"
        return obstacle(config.model_type, config.get_text_config()._attn_implementation)

    def _samples_itself(self) -> bool:
        """Whether `sample` draws from the distribution that the settings ask for, and nothing else is to draw."""
        plain = self.top_p == 1.0 and not self.top_k and self.min_p is None and self.repetition_penalty == 1.0
        return plain and not self.use_vllm

    def _keeps_prefix(self) -> bool:
        """Whether the policy pass may go on from the prefix that sampling has encoded.

        The weights must be the same, one batch must be all that is sampled for, nothing may be dropped at random, and
        no wrapper may be waiting for a forward pass of its own.
        """
        dropping = any(isinstance(part, torch.nn.Dropout) and part.p for part in self.model.modules())
        one_batch = self.args.steps_per_generation == self.num_iterations == 1
        forgetful = dropping or self.args.gradient_checkpointing
        return self.model.training and one_batch and not forgetful and self.accelerator.num_processes == 1

    # Rewards: over all ranks, groups whole.

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        task, grpo = self._settings.task, self._settings.grpo
        texts = [completion[0]["content"] for completion in completions]
        device = self.accelerator.device
        local = torch.tensor(
            np.stack([parse_answers(texts, task.low, task.high), [row["target"] for row in inputs]], axis=1),
            dtype=torch.float64,
            device=device,
        )
        predictions, targets = gather(local).cpu().numpy().T
        shots = np.array(gather_object([row["shot"] for row in inputs]))
        p, t = predictions.reshape(-1, grpo.generations), targets.reshape(-1, grpo.generations)[:, 0]
        rewards = np.stack([self._compared(p, t), format_reward(p)])
        advantages = group_advantages(rewards, [grpo.reward_weight, grpo.format_weight], grpo.advantage)
        self._advantages = torch.tensor(advantages.reshape(-1), dtype=torch.float32, device=device)
        self._watch(p, t, shots.reshape(-1, grpo.generations)[:, 0], rewards)
        return torch.tensor(rewards.reshape(2, -1).T.copy(), dtype=torch.float32, device=device)

    def _compared(self, p: np.ndarray, t: np.ndarray) -> np.ndarray:
        """The regression reward of every answer `(B, G)`, the anchors of earlier steps beside the batch."""
        task, grpo, step = self._settings.task, self._settings.grpo, self.state.global_step
        if self._recent is None:
            return regression_reward(grpo.reward, p, t, task.low, task.high)
        joined = self._recent.joined(step, p, t)
        self._recent.add(step, p, t)
        return regression_reward(grpo.reward, *joined, task.low, task.high)[: len(t)]

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._recent is not None and self.args.should_save:
            write_json(Path(output_dir) / RECENT, self._recent.state())

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if self._recent is not None and checkpoint is not None:
            self._recent.restore(json.loads((Path(checkpoint) / RECENT).read_text(encoding="utf-8")))

    def _watch(self, p: np.ndarray, t: np.ndarray, shots: np.ndarray, rewards: np.ndarray) -> None:
        """Logs what tells early whether the batch is learned from: rewards, spread, invalid share, errors by shot."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, reward in zip((self._settings.grpo.reward, "format"), rewards, strict=True):
            metrics[f"reward/{name}"].append(float(reward.mean()))
            metrics[f"spread/{name}"].append(float(reward.std(axis=1).mean()))
        valid = np.isfinite(p)
        metrics["invalid"].append(float(1 - valid.mean()))
        errors = np.abs(p - t[:, None])
        for group in ("all", *SHOTS):
            member = valid & ((shots == group) | (group == "all"))[:, None]
            if member.any():
                metrics[f"batch_mae/{group}"].append(float(errors[member].mean()))
        anchored = valid.any(axis=1)
        if anchored.sum() > 1 and t[anchored].std() > 0:
            anchors = np.nanmean(p[anchored], axis=1)
            metrics["sd_ratio"].append(float(anchors.std() / t[anchored].std()))

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        order: dict[int, int] = {}
        # Presentations hand the copies of an input the very same picture.
        owners = [order.setdefault(id(row["image"]), len(order)) for row in inputs]
        self._owners = torch.tensor(owners, device=self.accelerator.device)
        processor = self.processing_class
        self.processing_class = OncePerInput(processor, *_first_rows(self._owners))
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            self.processing_class = processor
        assert self._advantages is not None
        start = self.accelerator.process_index * len(inputs)
        output["advantages"] = self._advantages[start : start + len(inputs)]
        output["owners"] = self._owners
        self._owners = None
        return output

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        if self._step % (self.args.steps_per_generation * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch: Any = split_pixel_values_by_grid(self._generate_and_score_completions(generation_batch))
            # TRL shuffles rows here, which scatters groups over micro-batches; the presentations are shuffled already.
            parts: Any = split_tensor_dict(batch, self.args.steps_per_generation)
            self._buffered_inputs = [unsplit_pixel_values_by_grid(part) for part in parts]
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    # The shared prefix, in sampling and in log-probs.

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, has_tool_images: bool = False
    ) -> Any:
        if not self.sharing or self._owners is None or not self._samples_itself():
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        # One row an input, as OncePerInput has just had it made.
        batch = {name: value.to(self.accelerator.device) for name, value in self.processing_class.batch.items()}
        slots = Slots(self._owners, len(batch["input_ids"]))
        model = self.accelerator.unwrap_model(self.model_wrapped)
        keeping = self._keeps_prefix()
        with disable_gradient_checkpointing(model, self.args.gradient_checkpointing_kwargs):
            with torch.set_grad_enabled(keeping), self.accelerator.autocast():
                prefix = encode(model, batch.pop("input_ids"), batch.pop("attention_mask"), batch)
                self._kept = prefix if keeping else None
            with self.accelerator.autocast():
                drawn = sample(
                    model,
                    prefix,
                    slots,
                    self.max_completion_length,
                    self.temperature,
                    self.eos_token_ids,
                    self._tokenizer.pad_token_id,
                )
        ends = set(self.eos_token_ids)
        return [_until(row, ends) for row in drawn.tolist()], None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._owners = inputs["owners"]
        self._given, self._kept = self._kept, None
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._owners = self._given = None

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
        if not self.sharing or self._owners is None or compute_aux_loss or set(fields.get("num_images") or [1]) != {1}:
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
        first, owners = _first_rows(self._owners)
        length = input_ids.shape[1] - logits_to_keep
        pictures = select({name: fields.get(name) for name in IMAGE_FIELDS}, first)
        for name in set(PER_TOKEN) & pictures.keys():
            pictures[name] = pictures[name][:, :length]
        slots, completions = Slots(owners, len(first)), input_ids[:, length:]
        with self.accelerator.autocast():
            if torch.is_grad_enabled() and self._given is not None:
                logps, entropy = score(model, self._given, slots, completions, self.temperature)
            else:
                prompt = input_ids[first, :length], attention_mask[first, :length], pictures
                logps, entropy = score_whole(model, *prompt, slots, completions, self.temperature)
        return logps, entropy if compute_entropy else None, None


def _first_rows(owners: Tensor) -> tuple[Tensor, Tensor]:
    """The first row of each input among `owners` `(N,)`, and for every row the place of its input among those."""
    _, place = torch.unique(owners, return_inverse=True)
    count = int(place.max()) + 1
    rows = torch.arange(len(owners), device=owners.device)
    first = torch.full((count,), len(owners), device=owners.device).scatter_reduce(0, place, rows, "amin")
    return first, place


def _until(row: list[int], ends: set[int]) -> list[int]:
    """The row up to and with its first end token."""
    for i, token in enumerate(row):
        if token in ends:
            return row[: i + 1]
    return row


def _regression(**_: Any) -> list[float]:
    """Names the column; BatchRewardTrainer computes it over all ranks."""
    raise NotImplementedError


def _format(**_: Any) -> list[float]:
    """Names the column; BatchRewardTrainer computes it over all ranks."""
    raise NotImplementedError
