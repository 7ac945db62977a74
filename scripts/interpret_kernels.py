"""Kernels for CUDA against the plain code, without a CUDA device: Triton's interpreter runs them on a CPU.

    pip install triton==3.6.0 liger-kernel==0.8.5 'numpy<2.4'      # the interpreter fails with a newer numpy
    python scripts/interpret_kernels.py

Losses and gradients of the embedded model: by how much kernels change them in float32, and how far plain code and
kernels are from float32's in float16, in mixed precision, with adapters, and with checkpointing. The interpreter has no
bfloat16, no reciprocal root and takes no floating-point arguments: the last two it is given here.
"""

from __future__ import annotations

import contextlib
import copy
import os
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import liger_kernel.ops.rms_norm as liger_norm
import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter
from torch import nn

from remask import kernels, load
from remask.config import LoraConfig
from remask.models import fused
from remask.models.lora import add_adapter


def mend_interpreter() -> None:
    """And let kernels be used on a CPU."""
    convert = interpreter._implicit_cvt

    def with_floats(given: Any) -> Any:
        if isinstance(given, float):
            return tl.tensor(interpreter.TensorHandle(np.array([given], dtype=np.float32), tl.float32), tl.float32)
        return convert(given)

    interpreter._implicit_cvt = with_floats
    liger_norm.rsqrt = lambda x: 1.0 / tl.sqrt(x)
    torch.cuda.get_device_properties = lambda *_: SimpleNamespace(multi_processor_count=4)
    torch.cuda.device_of = lambda _: contextlib.nullcontext()
    kernels.serve = fused.fuses = lambda x: kernels.ON and bool(x.numel())


def read(model: nn.Module, mixed: bool = False) -> torch.Tensor:
    """Losses and all gradients, one after the other."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(60, 120, (2, 20), generator=generator)
    positions = torch.zeros_like(ids, dtype=torch.bool)
    positions[:, 5:12] = True
    model.zero_grad()
    with torch.autocast("cpu", torch.float16, enabled=mixed):
        loss = model(input_ids=ids, positions=positions, targets=ids[positions]).token_loss
    loss.mean().backward()
    gradients = (p.grad.float().flatten() for p in model.parameters() if p.grad is not None)
    return torch.cat([loss.detach().float(), *gradients])


def compare(name: str, model: nn.Module, right: torch.Tensor, mixed: bool = False) -> None:
    apart = []
    for kernels.ON in (False, True):
        apart.append(((read(model, mixed) - right).norm() / right.norm()).item())
    print(f"{name:48} plain {apart[0]:.4f}, kernels {apart[1]:.4f}")


def main() -> None:
    mend_interpreter()
    torch.manual_seed(0)
    model, _ = load("tiny")
    model.requires_grad_(True)
    found = []
    for kernels.ON in (False, True):
        found.append(read(model))
    largest = ((found[0] - found[1]).abs().max() / found[0].abs().max()).item()
    print(f"float32: largest difference, of the largest value: {largest:.1e}\n\nfrom float32's, relative:")
    compare("float16", copy.deepcopy(model).half(), found[0])
    compare("mixed precision", model, found[0], mixed=True)
    adapted = add_adapter(copy.deepcopy(model), LoraConfig(rank=4, targets=("all-linear",), dropout=0.0), base_name="x")
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
    kernels.ON = False
    right = read(adapted)
    for parameter in adapted.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.half()
    for checkpointing in ("", ", checkpointing"):
        if checkpointing:
            adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            adapted.train()
        compare(f"adapters on float16{checkpointing}", adapted, right)
        compare(f"adapters, mixed precision{checkpointing}", adapted, right, mixed=True)


if __name__ == "__main__":
    main()
