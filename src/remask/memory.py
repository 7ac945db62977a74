"""How much memory is free."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch


def free_bytes(device: torch.device) -> int:
    """Return how many bytes are free on the device; on a CPU what the machine and the process's group leave."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = 1 << 30
    with suppress(OSError, StopIteration, ValueError):
        line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
        free = int(line.split()[1]) * 1024
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        free = min(free, int(limit) - int(used))
    return max(free, 1 << 20)
