"""What is freed is kept for what is asked for next."""

import ctypes
import subprocess
import sys

import pytest

ASK_TWICE = """
import resource
import torch
from omegaconf import OmegaConf
from irattack.pipeline.compute import prepare

if {prepared}:
    prepare(OmegaConf.create(dict(threads=1, device="cpu", precision="fp32")))
for _ in range(4):
    torch.ones(64 << 20)  # 256 MB: 65536 pages of 4 kB, 128 of 2 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(64 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc's malloc")
def test_a_prepared_process_does_not_ask_the_kernel_twice_for_the_same_memory() -> None:
    def faults(prepared: bool) -> int:
        code = ASK_TWICE.format(prepared=prepared)
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        return int(done.stdout)

    assert faults(prepared=True) < faults(prepared=False) / 4
