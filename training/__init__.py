"""The trainer: data, optimisers, checkpoints and schedules."""
