"""How a tensor's dtype is told to the compiled kernels."""

import torch

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
