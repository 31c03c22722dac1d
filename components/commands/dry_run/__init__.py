"""One batch of a training step, without weights, data or traces: what would it need?"""
