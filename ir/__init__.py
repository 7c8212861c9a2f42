"""The intermediate representation: types, ops, graph, text form, verifier, rewriter and reference interpreter."""
