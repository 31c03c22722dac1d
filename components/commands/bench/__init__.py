"""Our training step against TRL's own, measured."""
