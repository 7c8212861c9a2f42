"""ExecuTorch: one .pte of methods over the same weights and states, run by its own runtime or a phone's."""
