"""Block models whose clean tokens look at no later one: what a causal model says of finished text is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import SIZES, seeded
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from remask.diffusion.attention import BlockCausal
from remask.diffusion.blocks import in_blocks
from remask.diffusion.corruption import Canvas
from remask.diffusion.likelihood import elbo
from remask.diffusion.noise import collate_noise, row_noise
from remask.diffusion.reader import ModelReader
from remask.models import packing
from remask.models.convert import to_diffusion
from remask.sampling import Decoding, run

PROMPT, ANSWER = 5, 7


@pytest.fixture(scope="module")
def causal(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A causal model of random weights, and its folder."""
    folder = tmp_path_factory.mktemp("causal")
    sizes = {"vocab_size": len(tokenizer), "intermediate_size": 48, "eos_token_id": tokenizer.eos_token_id}
    model = seeded(lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **sizes)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, folder


def converted(causal: tuple[Any, Path], block: int) -> Any:
    return to_diffusion(str(causal[1]), attention=f"block:{block}:causal")[0]


def one_row(model: Any) -> Canvas:
    ids = torch.randint(60, 120, (1, PROMPT + ANSWER), generator=torch.Generator().manual_seed(3))
    answer = torch.arange(PROMPT + ANSWER)[None] >= PROMPT
    return in_blocks(Canvas(ids, torch.ones_like(answer), answer, answer), model.attention)


@torch.no_grad()
def log_likelihoods(source: Any, ids: Tensor) -> Tensor:
    """The causal model's log-probability of each token of the answer."""
    said = source(ids).logits[0, PROMPT - 1 : -1].log_softmax(-1)
    return said.gather(1, ids[0, PROMPT:, None])[:, 0]


@torch.no_grad()
def test_in_blocks_of_one_token_it_is_the_causal_model(causal: tuple[Any, Path]) -> None:
    """Its likelihood is the causal one whatever the noise, and at temperature 0 it writes the same tokens."""
    source, model = causal[0], converted(causal, 1)
    canvas = one_row(model)
    exact = log_likelihoods(source, canvas.ids)
    for seed in range(2):
        noise = collate_noise([row_noise(seed, 0, 0, 0, PROMPT + ANSWER)], [0], PROMPT + ANSWER)
        found = elbo(model, canvas, [noise], 1).token[0, PROMPT:]
        torch.testing.assert_close(found.float(), exact, rtol=0, atol=1e-4)
    prompt = canvas.ids[:, :PROMPT]
    greedy = source.generate(prompt, max_new_tokens=ANSWER, do_sample=False, pad_token_id=0, eos_token_id=[])
    for kept in ("none", "exact"):
        decoding = Decoding(max_new_tokens=ANSWER, cache=kept, stop_early=False)  # type: ignore[arg-type]
        assert run(model, prompt, None, decoding).ids.tolist() == greedy[:, PROMPT:].tolist()


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_first_token_of_each_block_is_predicted_as_by_the_causal_model(
    attention: str, causal: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though all of the answer is masked: what stands before the block is read clean."""
    if attention == "eager":
        monkeypatch.setattr(packing, "attention_of", lambda config: "eager")
    model = converted(causal, 3)
    canvas = one_row(model)
    noised = canvas.ids.masked_fill(canvas.corruptible, model.config.mask_token_id)
    ce = ModelReader(model).losses(noised, canvas, canvas.corruptible)
    begins = torch.arange(PROMPT, PROMPT + ANSWER) % 3 == 0
    exact = -log_likelihoods(causal[0], canvas.ids)
    torch.testing.assert_close(ce[begins], exact[begins], rtol=0, atol=1e-5)
    assert not torch.isclose(ce[~begins], exact[~begins], atol=1e-3).any()


@torch.no_grad()
@pytest.mark.parametrize("alignment", ["", ":answer"])
@pytest.mark.parametrize("shift", [True, False])
def test_a_noised_block_of_training_is_the_block_at_work_of_sampling(
    shift: bool, alignment: str, causal: tuple[Any, Path]
) -> None:
    """Its losses are those of a row whose earlier blocks are finished and whose later ones are not there."""
    model = to_diffusion(str(causal[1]), attention=f"block:3{alignment}:causal", shift=shift)[0]
    canvas = one_row(model)
    assert isinstance(model.attention, BlockCausal)
    assert canvas.block is not None
    chance = torch.rand(canvas.ids.shape, generator=torch.Generator().manual_seed(4))
    mask = canvas.corruptible & (chance < 0.7)
    noised = canvas.ids.masked_fill(mask, model.config.mask_token_id)
    trained = torch.zeros(canvas.ids.shape).masked_scatter(mask, ModelReader(model).losses(noised, canvas, mask))
    seen = 0
    for number in range(int(canvas.block.max()) + 1):
        here = mask & (canvas.block == number)
        end = int((canvas.block <= number).sum())
        row = torch.where(canvas.block < number, canvas.ids, noised)[:, :end]
        answer = canvas.corruptible[:, :end]
        said = model(input_ids=row, attention_mask=torch.ones_like(row), positions=here[:, :end], answer=answer).logits
        found = -said.log_softmax(-1).gather(1, canvas.ids[here][:, None])[:, 0]
        torch.testing.assert_close(found, trained[here], rtol=0, atol=1e-5)
        seen += len(found)
    assert seen == int(mask.sum()) > 3
