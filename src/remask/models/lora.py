"""LoRA through peft, with the one check users miss: every named target must exist in the model."""

from __future__ import annotations

from typing import Any

from torch import nn

from remask.config import LoraConfig
from remask.errors import UserError


def add_adapter(model: Any, lora: LoraConfig, *, base_name: str) -> Any:
    """Wrap the model in fresh adapters. Raises UserError naming targets that match no linear layer.

    `base_name` is what the adapter will name as its base, so that it can be loaded again by that name.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if lora.targets == ("all-linear",):
        targets = sorted(linear - {"lm_head"})
    else:
        unmatched = [target for target in lora.targets if target not in linear]
        if unmatched:
            raise UserError(
                f"LoRA targets {', '.join(unmatched)} match no layer",
                mend=f"the model's linear layers are {', '.join(sorted(linear))}, or use all-linear",
            )
        targets = list(lora.targets)
    model.config._name_or_path = base_name
    model.name_or_path = base_name
    return get_peft_model(
        model,
        PeftLoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets),
    )
