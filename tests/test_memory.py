from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from lightning_edgesplit import memory

FAULTS = """
import resource, torch
from lightning_edgesplit import memory
assert memory.keep_freed() is {kept}
{back}
torch.set_num_threads(1)
for step in range(20):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(1 << 21) for _ in range(4)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def faults(kept: bool = True, back: str = "", **environment: str) -> int:
    """Pages that are got anew in 18 steps, each of which takes and frees 32 MiB."""
    code = FAULTS.format(kept=kept, back=back)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@glibc
def test_memory_that_was_freed_is_kept_for_the_next_step():
    assert faults() < 18 * 8192 / 10  # of all pages


@glibc
def test_what_the_user_has_set_stays():
    assert faults(kept=False, MALLOC_MMAP_THRESHOLD_="65536") > 18 * 4 * 2048 * 0.9  # all pages of 8 MiB, each time


@glibc
def test_it_is_given_back():
    back = """
kept = [torch.ones(1 << 21) for _ in range(20)]
last = torch.ones(1 << 10)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
del kept
before = resident()
memory.give_back()
assert before - resident() > 100e6, (before, resident())
"""
    faults(back=back)


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not memory.keep_freed()
    memory.give_back()
