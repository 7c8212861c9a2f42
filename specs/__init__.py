"""Spec files that ship with omnic, and the JSON Schema of the spec language."""
