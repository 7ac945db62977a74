"""An engine of one's own: a copy of the model answers, on a device of its own, while the live one is trained.

    ENGINE_DEVICE=cuda:1 remask rl --rollout.engine examples/extend/copied_engine.py:Copied --tasks sudoku \\
        --output-dir runs/copied

`update` takes over the weights; until then answers are of the version before. An engine may as well send its requests
to a server, or to several.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from remask.sampling.engine import Answer, LocalEngine, Request
from remask.sampling.schedule import Decoding


class Copied:
    def __init__(self, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        self.engine = LocalEngine(tokenizer, batch_size)

    @torch.no_grad()
    def update(self, model: Any, version: int) -> None:
        if self.engine.model is None:
            device = os.environ.get("ENGINE_DEVICE", str(model.device))
            self.engine.update(copy.deepcopy(model).to(device).eval(), version)
        for name, value in self.engine.model.state_dict().items():
            value.copy_(model.state_dict()[name])
        self.engine.version = version

    def answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Answer]:
        return self.engine.answer(requests, decoding)
