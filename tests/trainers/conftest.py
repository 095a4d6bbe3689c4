"""Without a GPU, Triton kernels run in its interpreter; it must be told before they are imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
