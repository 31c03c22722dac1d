"""What the trainers of sft and grpo share: presentations, augmentation, checkpoints, validation,
curves, ranks."""
