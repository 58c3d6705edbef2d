"""Checkpoints as Hugging Face writes them, and random ones of the same shape."""
