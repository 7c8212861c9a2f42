"""A package that brings one pass for omnic."""
