"""Passes over IR modules, one a file, and the pipelines that order them."""
