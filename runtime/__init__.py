"""PyTorch runtime: calibrates the machine, runs a policy on a real checkpoint, measures."""

import os

# Read when OpenMP is loaded with PyTorch: threads that wait by spinning take cores from those that feed the GPU, and on
# a busy machine one late thread then costs all of them a time slice (8 ms instead of microseconds per operation).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
