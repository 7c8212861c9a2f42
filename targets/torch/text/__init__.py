"""Writing Python: steps of a function, the scopes that become classes, the lowering tables, the text."""
