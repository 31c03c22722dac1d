"""GRPO with a reward over the whole batch."""
