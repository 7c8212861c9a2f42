"""Backends, one folder each: capabilities, lowering table, emitter, checker and session."""
