"""What the trainers of sft and grpo share."""
