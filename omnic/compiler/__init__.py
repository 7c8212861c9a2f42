"""The compiler's driver: from a spec to a proven bundle, and from two bundles to where they differ."""
