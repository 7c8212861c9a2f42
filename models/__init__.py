"""Builders from a spec to an IR module, and the importers of checkpoints."""
