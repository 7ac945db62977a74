"""The choices of models, data, instruments and machines."""

from __future__ import annotations

from typing import Annotated, Literal

from remask.choices.choice import Meanings, meanings

Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    Meanings(
        {
            "auto": "the checkpoint's own",
            "float32": "32 bits",
            "bfloat16": "16 bits, with the range of float32",
            "float16": "16 bits, with more digits and a smaller range",
        }
    ),
]

PlannedDtype = Annotated[
    Literal["bfloat16", "float32"],
    Meanings({name: meanings(Dtype)[name] for name in ("bfloat16", "float32")}),
]

Quantization = Annotated[
    Literal["4bit", "4bit-double", "8bit"],
    Meanings(
        {
            "4bit": "NF4, 4.5 bits a weight with its scales",
            "4bit-double": "NF4 with quantised scales, 4.13 bits a weight",
            "8bit": "LLM.int8(), 8 bits a weight",
        }
    ),
]

Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    Meanings({"auto": "the GPU where there is one", "cpu": "the processor", "cuda": "the GPU"}),
]

FillName = Annotated[
    str,
    Meanings(
        {
            "batch": "to the longest row of its batch",
            "multiple:<n>": "to the next multiple of n tokens, within max_length",
            "block:<n>": "to the end of a whole block of n tokens, counted from the row's first",
            "max": "to max_length",
            "none": "not at all",
        }
    ),
]

OverLong = Annotated[
    Literal["truncate", "drop", "error"],
    Meanings({"truncate": "cut the answer", "drop": "leave the row out and count it", "error": "stop"}),
]

OverLongPrompt = Annotated[
    Literal["error", "drop"],
    Meanings({"error": "stop", "drop": "leave the prompt out and count it"}),
]

OnBadRow = Annotated[
    Literal["error", "skip"],
    Meanings({"error": "stop with its file and line", "skip": "leave it out, and count and list it"}),
]

CorruptionName = Annotated[
    Literal["mask", "uniform"],
    Meanings(
        {
            "mask": "noise puts the mask token in the place of tokens",
            "uniform": "noise puts tokens drawn uniformly from the vocabulary in the place of others (DiffusionGemma)",
        }
    ),
]

PromptStyle = Annotated[
    Literal["compact", "instruct"],
    Meanings(
        {
            "compact": "the problem in a few words, as the embedded models know it",
            "instruct": "the problem explained, and the form of the answer asked for",
        }
    ),
]

Split = Annotated[
    Literal["train", "validation", "test"],
    Meanings(
        {
            "train": "problems to learn from",
            "validation": "problems to choose settings by",
            "test": "problems to report scores on",
        }
    ),
]

HeldOutSplit = Annotated[
    Literal["validation", "test"],
    Meanings({name: meanings(Split)[name] for name in ("validation", "test")}),
]

InstrumentName = Annotated[
    Literal["elbo", "tightness", "reward", "gradients"],
    Meanings(
        {
            "elbo": "bias and variance of estimates of the ELBO",
            "tightness": "how far the ELBO is below the likelihood",
            "reward": "whether the better answer of a prompt has the higher ELBO",
            "gradients": "bias and variance of the gradients of fine-tuning methods",
        }
    ),
]

StrategyName = Annotated[
    Literal["ddp", "zero1", "zero2", "zero3", "fsdp"],
    Meanings(
        {
            "ddp": "everything on every GPU",
            "zero1": "optimiser states are shared out",
            "zero2": "optimiser states and gradients are shared out",
            "zero3": "optimiser states, gradients and weights are shared out",
            "fsdp": "as zero3",
        }
    ),
]

GpuName = Annotated[
    Literal["a100-40gb", "a100-80gb", "l40s", "h100", "h200", "b200", "rtx-4090"],
    Meanings(
        {
            "a100-40gb": "NVIDIA A100, 40 GB",
            "a100-80gb": "NVIDIA A100, 80 GB",
            "l40s": "NVIDIA L40S",
            "h100": "NVIDIA H100",
            "h200": "NVIDIA H200",
            "b200": "NVIDIA B200",
            "rtx-4090": "NVIDIA GeForce RTX 4090",
        }
    ),
]
