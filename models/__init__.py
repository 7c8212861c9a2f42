"""Builders: a spec becomes an IR module of the front stage."""

from omnic.models.decoder import build

__all__ = ["build"]
