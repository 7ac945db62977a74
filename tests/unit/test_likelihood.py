"""ELBO estimates: by hand on a model that ignores its context, unbiasedness, complements, and the golden values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import remask.models  # noqa: F401  (registers the layout)
from remask.diffusion.corruption import Canvas, exact_count_mask
from remask.diffusion.likelihood import coupled_log_p, elbo, elbo_coupled, predict_with, weighted_log_p
from remask.diffusion.noise import MIN_TIME, Noise
from remask.errors import UserError

MASK = 4
LOG_P = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()


def ignorant(ids: Tensor, attended: Tensor, positions: Tensor) -> Tensor:
    """Says the same everywhere: the exact log-likelihood of an answer is the sum of its tokens' log p."""
    return LOG_P.expand(int(positions.sum()), 4)


def canvas(*responses: list[int], prompt: int = 2) -> Canvas:
    length = prompt + max(map(len, responses))
    ids = torch.zeros(len(responses), length, dtype=torch.long)
    response = torch.zeros(len(responses), length, dtype=torch.bool)
    for row, tokens in enumerate(responses):
        ids[row, prompt : prompt + len(tokens)] = torch.tensor(tokens)
        response[row, prompt : prompt + len(tokens)] = True
    return Canvas(ids, torch.ones_like(response), response, response)


def draws(count: int, rows: int, length: int, seed: int = 0) -> list[Noise]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Noise(
            MIN_TIME + (1 - MIN_TIME) * torch.rand(rows, generator=generator),
            torch.rand(rows, length, generator=generator),
        )
        for _ in range(count)
    ]


def test_by_hand() -> None:
    """n = 3; τ = 0.4 masks k = 1 + ⌊1.2⌋ = 2: the two smallest u, each weighing 3/2."""
    batch = canvas([0, 1, 2])
    noise = Noise(torch.tensor([MIN_TIME + (1 - MIN_TIME) * 0.4]), torch.tensor([[0.0, 0.0, 0.9, 0.1, 0.5]]))
    value = elbo(ignorant, batch, [noise], MASK)
    assert value.token[0].tolist() == pytest.approx([0, 0, 0, 1.5 * LOG_P[1].item(), 1.5 * LOG_P[2].item()])
    assert value.sequence.item() == pytest.approx(1.5 * (LOG_P[1] + LOG_P[2]).item())
    assert value.scored.tolist() == [3]


def test_coupled_by_hand() -> None:
    """n = 3; τ = 0.3 masks k = ⌊1.2⌋ = 1 with weight 4/1 and the other two with 4/2, halved."""
    batch = canvas([0, 1, 2])
    noise = Noise(torch.tensor([MIN_TIME + (1 - MIN_TIME) * 0.3]), torch.tensor([[0.0, 0.0, 0.9, 0.1, 0.5]]))
    value = elbo_coupled(ignorant, batch, [noise], MASK)
    weights = torch.tensor([1.0, 2.0, 1.0])
    assert value.token[0, 2:].tolist() == pytest.approx((weights * LOG_P[:3]).tolist())


@pytest.mark.parametrize("estimate", [elbo, elbo_coupled])
def test_unbiased_where_context_does_not_matter(estimate: Any) -> None:
    batch = canvas([0, 1, 2, 3], [3, 3], [1])
    values = torch.stack([estimate(ignorant, batch, [n], MASK).sequence for n in draws(4000, 3, 6)])
    exact = torch.tensor([LOG_P.sum().item(), 2 * LOG_P[3].item(), LOG_P[1].item()])
    error = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - exact).abs() <= 4 * error + 1e-5).all()


def test_several_draws_are_their_mean() -> None:
    batch, noise = canvas([0, 1, 2, 3], [2, 1]), draws(3, 2, 6)
    together = elbo(ignorant, batch, noise, MASK).token
    assert torch.allclose(together, torch.stack([elbo(ignorant, batch, [n], MASK).token for n in noise]).mean(0))


def test_every_token_is_scored_in_every_pair() -> None:
    batch = canvas([0, 1, 2, 3], [2, 1])
    for noise in draws(20, 2, 6):
        assert torch.equal(elbo_coupled(ignorant, batch, [noise], MASK).token != 0, batch.corruptible)


def test_a_row_without_response_is_likely_nothing() -> None:
    batch = canvas([0, 1])
    nothing = Canvas(batch.ids, batch.attended, torch.zeros_like(batch.corruptible), batch.supervised)
    for estimate in (elbo, elbo_coupled):
        value = estimate(ignorant, nothing, draws(2, 1, 4), MASK)
        assert value.sequence.tolist() == [0.0]
        assert value.scored.tolist() == [0]


def test_no_draws_are_an_error() -> None:
    with pytest.raises(UserError, match="without draws"):
        elbo(ignorant, canvas([0]), [], MASK)


def test_a_row_in_a_batch_is_the_row_alone(random_model: Any, tiny_config: Any) -> None:
    batch, noise = canvas([10, 20, 30], [40, 50, 60]), draws(2, 2, 5)
    both = elbo(random_model, batch, noise, tiny_config.mask_token_id)
    for row in range(2):
        part = Canvas(
            *(getattr(batch, name)[row : row + 1] for name in ("ids", "attended", "corruptible", "supervised"))
        )
        alone = elbo(
            random_model,
            part,
            [Noise(n.t[row : row + 1], n.u[row : row + 1]) for n in noise],
            tiny_config.mask_token_id,
        )
        assert torch.allclose(both.token[row], alone.token[0], atol=1e-5)


def test_the_value_carries_gradient(random_model: Any, tiny_config: Any) -> None:
    elbo(random_model, canvas([10, 20, 30]), draws(1, 1, 5), tiny_config.mask_token_id).sequence.sum().backward()
    assert random_model.lm_head.weight.grad.abs().max() > 0


@pytest.mark.shared
@pytest.mark.parametrize("number", range(4))
def test_golden(number: int, shared: Path) -> None:
    """The reference weighs a masked token (n+1)/k, for the plain estimate too."""
    from transformers import AutoModelForMaskedLM

    golden = json.loads((shared / "golden" / "espo.json").read_text())
    model: Any = AutoModelForMaskedLM.from_pretrained(shared / "golden" / golden["checkpoint"], dtype=torch.float32)
    case, prompt, n = golden["elbo"][number], golden["prompt_length"], golden["completion_length"]
    ids = torch.tensor(golden["input_ids"])
    response = torch.zeros_like(ids, dtype=torch.bool)
    response[:, prompt:] = True
    batch = Canvas(ids, torch.ones_like(response), response, response)
    mask = torch.zeros_like(response)
    mask[:, prompt:] = torch.tensor(case["mask"]).bool()
    count = mask.sum(-1)
    assert count.tolist() == case["num_masked"]
    assert torch.equal(exact_count_mask(1 - mask.float(), count, response), mask)
    with torch.no_grad():
        plain = weighted_log_p(
            predict_with(model.eval()), batch, mask, (n + 1) / count.clamp(min=1), golden["mask_token_id"]
        ).sum(-1)
        coupled = coupled_log_p(predict_with(model), batch, mask, golden["mask_token_id"]).sum(-1)
    assert plain.tolist() == pytest.approx(case["elbo_plain"], rel=1e-4)
    assert coupled.tolist() == pytest.approx(case["elbo_coupled"], rel=1e-4)
