"""The reference trainer: a dataset, a settled config, a loop."""
