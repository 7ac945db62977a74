"""Remask: post-training for diffusion language models. Names are resolved on first use; importing loads no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from remask import (
        analysis,
        choices,
        config,
        data,
        diffusion,
        evaluation,
        kernels,
        models,
        preference,
        publishing,
        report,
        rl,
        sampling,
        sandbox,
        serving,
        sft,
        study,
        tasks,
        training,
    )
    from remask.errors import UserError
    from remask.models.load import load
    from remask.sampling.generate import generate
    from remask.serving.run import serve

_NAMES = {
    "load": ("remask.models.load", "load"),
    "generate": ("remask.sampling.generate", "generate"),
    "serve": ("remask.serving.run", "serve"),
    "UserError": ("remask.errors", "UserError"),
}
_PACKAGES = (
    "analysis",
    "choices",
    "config",
    "data",
    "diffusion",
    "evaluation",
    "kernels",
    "models",
    "preference",
    "publishing",
    "report",
    "rl",
    "sampling",
    "sandbox",
    "serving",
    "sft",
    "study",
    "tasks",
    "training",
)

__all__ = [
    "UserError",
    "__version__",
    "analysis",
    "choices",
    "config",
    "data",
    "diffusion",
    "evaluation",
    "generate",
    "kernels",
    "load",
    "models",
    "preference",
    "publishing",
    "report",
    "rl",
    "sampling",
    "sandbox",
    "serve",
    "serving",
    "sft",
    "study",
    "tasks",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        module, attribute = _NAMES[name]
        return getattr(importlib.import_module(module), attribute)
    if name in _PACKAGES:
        return importlib.import_module(f"remask.{name}")
    raise AttributeError(f"module 'remask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
