"""What every test may use: shared golden and data files, a byte-level tokenizer, a small model of random weights.

Shapes annotated in `remask.diffusion` and `remask.sampling` are checked in unit tests (`checked`).
"""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxtyping
import pytest

import checked  # and `jaxtyping.jaxtyped` with it, which the hook below applies to what it imports

gc.disable()  # until all is imported and collected
jaxtyping.install_import_hook(["remask.diffusion", "remask.sampling"], "beartype.beartype")

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from remask.diffusion.reader import LogitsReader
    from remask.models.llada import LLaDAConfig, LLaDAModelLM

REPOSITORY = Path(__file__).parents[1]


def pytest_collection_finish() -> None:
    """What was imported and collected is not garbage: the collector need not look through it again and again."""
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    checked.begin_anew()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden values and published data: $REMASK_SHARED, or `shared` beside the repository."""
    folder = Path(os.environ.get("REMASK_SHARED") or REPOSITORY.parent / "shared")
    if not (folder / "golden").is_dir():
        pytest.skip(f"no golden and data files at {folder}: set REMASK_SHARED to the folder that holds them")
    return folder


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the checks of annotations: to see what a user sees who gives a value of the wrong type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def pretrain_tiny() -> Any:
    """The script that makes the embedded model: its tokenizer and chat template are those of the tests."""
    spec = importlib.util.spec_from_file_location("pretrain_tiny", REPOSITORY / "scripts" / "pretrain_tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tokenizer(pretrain_tiny: Any) -> PreTrainedTokenizerFast:
    """One token a byte, with the embedded model's chat template."""
    return pretrain_tiny.build_tokenizer()


@pytest.fixture(scope="session")
def small_config(tokenizer: PreTrainedTokenizerFast) -> Callable[..., LLaDAConfig]:
    """The config of a model of a few thousand weights; keywords change it."""
    from remask.models.llada import LLaDAConfig

    def make(**changes: Any) -> LLaDAConfig:
        return LLaDAConfig(
            **{
                "vocab_size": len(tokenizer),
                "d_model": 32,
                "n_layers": 2,
                "n_heads": 2,
                "mlp_hidden_size": 64,
                "max_sequence_length": 256,
                "rope_theta": 10000.0,
                "mask_token_id": tokenizer.mask_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                "stop_token_ids": [tokenizer.convert_tokens_to_ids("<|end|>")],
                "fill": "batch",
                "prompt_style": "compact",
                **changes,
            }
        )

    return make


@pytest.fixture
def tiny_config(small_config: Callable[..., LLaDAConfig]) -> LLaDAConfig:
    """A config whose random weights are wide enough (`init_std`) for predictions to differ clearly."""
    return small_config(init_std=0.3)


@pytest.fixture
def random_model(tiny_config: LLaDAConfig) -> LLaDAModelLM:
    """A small model of random weights, the same every time, in evaluation mode."""
    return build_random_model(tiny_config)


@pytest.fixture
def another_model(tiny_config: LLaDAConfig) -> LLaDAModelLM:
    """The same model with other weights."""
    return build_random_model(tiny_config, seed=1)


def build_random_model(config: LLaDAConfig, seed: int = 0) -> LLaDAModelLM:
    import torch

    from remask.models.llada import LLaDAModelLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LLaDAModelLM(config).eval()


@pytest.fixture(scope="session")
def logits_of() -> Callable[[Any], LogitsReader]:
    """From a model to a reader that keeps the logits of all positions that are asked for."""
    from remask.diffusion.reader import LogitsReader

    def wrap(model: Any) -> LogitsReader:
        return LogitsReader(
            lambda ids, attended, positions: (
                model(input_ids=ids, attention_mask=attended.long(), positions=positions).logits
            )
        )

    return wrap
