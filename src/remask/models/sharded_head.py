"""The output head where weights are spread over processes: its weight is whole in its own forward pass only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from remask.diffusion.head import Head, Matrix
from remask.models.patches import applies, exchanged

T = TypeVar("T")


class ShardedMatrix(Matrix):
    """A head in a separate FSDP2 unit (with the final norm, as accelerate does, or alone), or under DeepSpeed's ZeRO-3:
    what is computed with its whole weight takes the place of its forward pass.
    """

    def whole(self, compute: Callable[[Tensor], T], hidden: Tensor) -> T:
        with exchanged("sharded-head", self.linear, "forward", compute):
            found: T = self.linear(hidden)
            return found


class Called:
    """A linear head that is called as it is, though its class is that of a plain matrix."""

    def __init__(self, linear: nn.Linear) -> None:
        self.linear, self.out_features = linear, linear.out_features

    def __call__(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.linear(hidden)
        return logits


def head_of(head: nn.Module) -> Head:
    """Return the head as `remask.diffusion.head` takes it."""
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward or "forward" in vars(head):
        return head
    sharded = isinstance(head, FSDPModule) or hasattr(head.weight, "ds_id")
    if sharded and applies("sharded-head"):
        return ShardedMatrix(head)
    return Called(head) if sharded or isinstance(head.weight, DTensor) else head
