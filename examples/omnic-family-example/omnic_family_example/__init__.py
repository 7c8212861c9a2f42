"""A package that brings one family of checkpoints for omnic."""
