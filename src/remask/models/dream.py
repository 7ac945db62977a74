"""Dream, natively: transformers' Qwen2, made bidirectional, with Dream's one-step shift undone.

Dream (arXiv 2508.15487), Dream-Coder and DiffuCoder share this layout: weight names are Qwen2's own, so nothing is
renamed. Logits are within 1e-5 of the reference (tests/unit/test_golden.py).
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import Qwen2Config, Qwen2ForCausalLM

from remask.models.bidirectional import Bidirectional, OfficialKeys


@strict
class DreamConfig(OfficialKeys, Qwen2Config):
    """The config of Dream has Qwen2's keys, a mask token, and the shift that its files leave unsaid."""

    model_type = "Dream"

    mask_token_id: int | None = None
    stop_token_ids: list[int] | None = None
    fill: str | None = None
    shift: bool = True
    is_causal: bool = False
    use_cache: bool = False


class DreamModel(Bidirectional, Qwen2ForCausalLM):
    """A Dream model: a bidirectional Qwen2, shifted where its config says so. The class carries the official name, so a
    saved `config.json` names an architecture that other tools know.
    """

    config_class = DreamConfig
    config: Any
