"""Published checkpoints into the IR: families, their tables, quantised dialects."""
