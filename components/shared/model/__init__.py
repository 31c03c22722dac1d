"""Vision-language models: loading, saving, prompts and greedy generation."""
