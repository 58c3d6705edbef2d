"""Subcommands of `hrm` that need PyTorch."""
