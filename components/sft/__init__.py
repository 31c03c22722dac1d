"""Supervised fine-tuning (SFT): trains the warm start for GRPO."""
