"""Bundles, sessions and the decode engine above them."""
