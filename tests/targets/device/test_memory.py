"""Compare the memory of a process after large blocks were freed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from autocompress.targets.device.memory import large_blocks_freed_at_once, release_memory

# 48 MB in blocks of 2 MB. Freed blocks of 30 MB come before, as in a search: the allocator then
# takes blocks up to this size from its heap, of which it gives nothing back below 64 MB.
FREED = """
import contextlib, sys
import numpy as np
from autocompress.targets.device.memory import large_blocks_freed_at_once, release_memory

def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

for _ in range(3):
    np.ones(30 << 17)
release_memory()
before, blocks = held(), []
with contextlib.nullcontext() if sys.argv[1] == "plain" else large_blocks_freed_at_once():
    for _ in range(24):
        blocks.append(np.ones(2 << 17))
    del blocks
print((held() - before) >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems are left alone")
@pytest.mark.parametrize(("kind", "least", "most"), [("plain", 40, 60), ("own", 0, 10)])
def test_freed_blocks_go_back_to_the_system(kind: str, least: int, most: int) -> None:
    command = [sys.executable, "-c", FREED, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert least <= int(done.stdout) <= most


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    release_memory()
    entered = False
    with large_blocks_freed_at_once():
        entered = True
    assert entered
