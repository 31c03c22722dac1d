"""Vision-language models: built, loaded, prompted, sampled."""
