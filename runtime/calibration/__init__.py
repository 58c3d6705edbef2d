"""Micro-benchmarks that become a hardware profile."""
