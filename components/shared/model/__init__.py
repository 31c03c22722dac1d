"""Vision-language models: loading, prompting, sampling."""
