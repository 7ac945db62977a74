"""What a number was measured on: versions and hardware, kept beside every score."""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from importlib import metadata
from typing import Any

from remask import kernels


def versions() -> dict[str, str]:
    """Return the versions of Remask, Python, and the libraries whose release can change a number; that of reasoning-gym
    where its problems were asked for.
    """
    found = {"python": platform.python_version()}
    used = ["reasoning-gym"] if "reasoning_gym" in sys.modules else []
    for name in ("remask", "torch", "transformers", "tokenizers", "peft", "accelerate", *used):
        found[name] = _version(name)
    return found


@cache
def _version(name: str) -> str:
    """Of an installed distribution: what it is made of is read from the disk once."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def hardware(device: str | None = None) -> dict[str, Any]:
    """Return the device, its name, processor, cores and threads; of a GPU, whose kernels were switched on
    (`remask.kernels`).
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {
        "device": device,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name()
        found["gpus"] = torch.cuda.device_count()
        found["kernels"] = kernels.in_use()
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as handle:
            for line in handle:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def command() -> list[str]:
    """Return the command line that is running, with the program's short name."""
    return [os.path.basename(sys.argv[0]), *sys.argv[1:]]
