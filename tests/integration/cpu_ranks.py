"""Started by accelerate's launcher on every process: runs Remask's commands, one after the other, under FSDP2 or
DeepSpeed on CPUs, which accelerate would only do on accelerators. Only the choice of device and backend is replaced.

    accelerate launch --config_file recipes/accelerate/fsdp2.yaml --num_processes 2 cpu_ranks.py commands.json
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType


def pretend() -> None:
    """Let accelerate take CPU processes over gloo for a machine's accelerators."""

    def set_device(self: Any) -> None:
        if self.device is None:
            self.device = torch.device("cpu")

    PartialState.set_device = set_device  # type: ignore[method-assign]
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        start = PartialState.__init__
        PartialState.__init__ = lambda self, cpu=False, **keywords: start(self, cpu=False, **keywords)  # type: ignore
        engine = DistributedType.DEEPSPEED
    else:
        torch.distributed.init_process_group("gloo")
        engine = DistributedType.MULTI_GPU
    PartialState._prepare_backend = lambda self, cpu, sagemaker, backend=None: ("gloo", engine)  # type: ignore


def main(arguments: Sequence[str]) -> int:
    """Runs the commands that the file of that name lists."""
    pretend()
    from remask.cli import main as remask

    for command in json.loads(Path(arguments[0]).read_text()):
        code = remask(command)
        if code:
            sys.exit(f"remask {' '.join(command)}: exit code {code}")
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads now and then abort a process that ends in order


if __name__ == "__main__":
    main(sys.argv[1:])
