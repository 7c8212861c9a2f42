"""The torch target: a training module that reads as if written by hand, and batch-invariant inference."""
