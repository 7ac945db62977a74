"""Losses, likelihoods and their gradients with weights sharded over two processes by torch's fully_shard (FSDP2)."""

from __future__ import annotations

import sharded_losses

from started import ranks


def test_sharded_weights_give_the_same_losses_likelihoods_and_gradients() -> None:
    """A chunk of logits at a time, also with the head in a unit of its own.

    Both ranks score the same rows, so that the mean of their gradients is each one's.
    """
    both = ranks(program=sharded_losses.main)
    (said, error), (_, other) = (process.communicate(240) for process in both)
    assert [process.returncode for process in both] == [0, 0], (error + other)[-3000:]
    assert "equal: one pass, handed on, two passes, elbo, reading" in said
