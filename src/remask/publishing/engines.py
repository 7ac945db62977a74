"""Which other engines say that they load a model's official layout, by its `model_type`.

docs/models.md has the same as a table, with what was tried here. Each entry is what the engine's own pages say.
"""

from __future__ import annotations

TRANSFORMERS = "transformers, with the model's official code (`trust_remote_code=True`)"
LLAMA_CPP = "llama.cpp's diffusion example, once converted to GGUF"
SGLANG = "SGLang"
SAYS: dict[str, tuple[str, ...]] = {
    "llada": (TRANSFORMERS, LLAMA_CPP),
    "llada_moe": (TRANSFORMERS, LLAMA_CPP),
    "Dream": (TRANSFORMERS, LLAMA_CPP),
    "sdar": (TRANSFORMERS, SGLANG, "LMDeploy"),
    "sdar_moe": (TRANSFORMERS, SGLANG),
    "llada2_moe": (TRANSFORMERS, SGLANG),
    "Fast_dLLM_Qwen": (TRANSFORMERS,),
    "diffusion_gemma": ("transformers", "vLLM"),
}


def engines(model_type: str | None, *, adapter: bool) -> list[str]:
    """Return sentences for the card on what else loads a model of a type, or adapters of one."""
    if adapter:
        return [
            "The adapter is one of peft's. Its tensors have the names of Remask's own classes, which are transformers' "
            "(Llama, Qwen2 or Qwen3). For other engines merge it into its base: `remask convert --merge`."
        ]
    said = SAYS.get(model_type or "")
    if not said:
        return ["No other engine is known to decode models of this type."]
    return [
        "The weights have the official names and layout. By their own documentation these engines load models of type "
        f"`{model_type}`: {'; '.join(said)}. They were not tried with this one."
    ]
