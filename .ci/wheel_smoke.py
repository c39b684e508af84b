"""What a fresh wheel must do on any machine: import, one operation on its own kernels, and the doctor. No GPU."""

import subprocess
import sys

import torch

import ssmn
from ssmn import native

status = native.status()
assert status.available, status.reason
generator = torch.Generator().manual_seed(0)
x = torch.nn.functional.normalize(torch.randn(1, 70, 2, 4, generator=generator), dim=-1)
gates = {"eta": torch.full((1, 70, 2), 0.5), "log_decay": torch.zeros(1, 70, 2)}
outputs = {}
for backend in ("reference", "native"):
    outputs[backend], _ = ssmn.ops.synaptic_memory(x, x, x, **gates, backend=backend)
torch.testing.assert_close(outputs["native"], outputs["reference"])
subprocess.run([sys.executable, "-m", "ssmn", "doctor"], check=True)
print(status.reason)
