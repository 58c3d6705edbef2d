"""Attention, expert matmuls and copies that PyTorch has no single call for."""
