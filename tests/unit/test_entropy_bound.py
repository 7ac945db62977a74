"""The sampler of models that replace tokens by others: published generations, its rule by hand, and batches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from remask.errors import UserError
from remask.models.facts import facts
from remask.models.load import load_model
from remask.sampling import Decoding, denoise, entropy_bound, run
from remask.sampling.entropy_bound import Draws, accepted, defaults_of, fitted
from remask.sampling.generate import decoding_for
from remask.sampling.record import Step
from remask.sampling.row_noise import RowNoise

SETTINGS = ("max_new_tokens", "entropy_bound", "t_min", "t_max", "stability_threshold", "confidence_threshold")


@pytest.fixture
def folder(shared: Path) -> Path:
    return shared / "golden" / "diffusion_gemma_tiny"


@pytest.fixture
def model(folder: Path) -> Any:
    model: Any = load_model(str(folder)).eval()
    facts(model)
    return model


def case_of(folder: Path, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "expected_generate.json").read_text())[number]
    return found


def of_case(case: dict[str, Any], **changes: Any) -> Decoding:
    canvases = -(-case["max_new_tokens"] // 8)
    temperature = 0.0 if case["draw"] == "argmax" else 1.0
    settings = {name: case[name] for name in SETTINGS}
    return Decoding(**settings, steps=case["max_denoising_steps"] * canvases, temperature=temperature, **changes)


@torch.no_grad()
def same_rounding(model: Any, folder: Path) -> bool:
    """Return whether this machine computes the golden logits to the last bit."""
    expected = load_file(folder / "expected_logits.safetensors")
    prefix = model.empty_prefix()
    model(clean=expected["prompt_ids"], prefix=prefix, keep=True)
    return torch.equal(model(input_ids=expected["canvas_ids"], prefix=prefix).logits, expected["logits_first_step"])


# ---- published generations ---------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("number", range(5))
def test_tokens_are_the_published_ones(number: int, model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the uniform tokens that the published code drew, in its order. In the last case it drew the others too:
    torch's generator is asked for both in the same order here.
    """
    case = case_of(folder, number)
    given, drawn = iter(case["uniform_tokens"]), [0]

    def tokens(self: Draws, rows: Tensor, canvas: int, place: int) -> Tensor:
        drawn[0] += 1
        found = torch.tensor([next(given)])
        if case["draw"] != "argmax":
            assert torch.equal(torch.randint(0, 160, (1, 8)), found)  # the generator stands where it stood there
        return found

    monkeypatch.setattr(Draws, "tokens", tokens)
    monkeypatch.setattr(entropy_bound, "drawn", lambda weight, _: torch.multinomial(weight, 1)[:, 0])
    steps: list[Step] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(63)
        done = run(model, torch.tensor([case["prompt"]]), None, of_case(case), on_step=steps.append)
    if done.ids[0].tolist() != case["output"] and not same_rounding(model, folder):
        pytest.skip("this processor rounds otherwise than the one of the golden files, and the steps add that up")
    assert done.ids[0].tolist() == case["output"]
    assert len(steps) == done.forwards - len(case["output"]) // 8  # each canvas is read once
    written = len(case["output"]) - case["output"].count(0)  # the published count leaves out the pad, wherever it is
    assert written / len(steps) == pytest.approx(case["tokens_per_forward"], rel=1e-6)
    assert drawn[0] == len(case["uniform_tokens"])


# ---- the rule ----------------------------------------------------------------------------------------------------


def test_what_is_accepted_by_hand() -> None:
    """In rising order 0, 0.04, 0.07, 0.5: their sums without the highest are 0, 0, 0.04 and 0.11."""
    entropy = torch.tensor([[0.5, 0.0, 0.07, 0.04], [9.0, 8.0, 7.0, 6.0]])
    assert accepted(entropy, 0.1).tolist() == [[False, True, True, True], [False, False, False, True]]
    assert accepted(entropy, 0.12).tolist()[0] == [True] * 4
    assert accepted(entropy, 0.0).tolist()[0] == [False, True, False, True]


class Told(nn.Module):
    """A model that says what it is told, step by step, of two places and four tokens."""

    def __init__(self, steps: list[list[list[float]]], eos: int = 3) -> None:
        super().__init__()
        self.steps = steps
        self.config = SimpleNamespace(
            canvas_length=2, vocab_size=4, eos_token_id=eos, corruption="uniform", mask_token_id=None
        )
        self.asked: list[Tensor] = []
        self.signals: list[Tensor | None] = []
        self.read: list[Tensor] = []

    def empty_prefix(self) -> Any:
        return self

    def of(self, rows: Tensor) -> Any:
        return self

    def embeddings_of(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    def forward(self, **given: Any) -> Any:
        if given.get("keep"):
            self.read.append(given["clean"])
            return None
        self.asked.append(given["input_ids"])
        self.signals.append(given["signal"])
        return SimpleNamespace(seen=given["look"](torch.tensor(self.steps[len(self.asked) - 1]), slice(0, 2)))


SURE, UNSURE = 50.0, 0.0


def of_token(token: int, height: float = SURE) -> list[float]:
    return [height if place == token else 0.0 for place in range(4)]


def test_the_loop_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two canvases of two places. In the first step the second place is unsure and drawn anew; then both are sure but
    have just changed; then they stay, and the canvas is done. In the second canvas EOS ends the text at once.
    """
    steps = [
        [of_token(1), [0.0, 0.0, 0.1, 0.0]],
        [of_token(1), of_token(0)],
        [of_token(1), of_token(0)],
        [of_token(3), of_token(2)],
        [of_token(3), of_token(2)],
    ]
    model: Any = Told(steps)
    given = iter([[0, 0], [3, 2], [0, 0], [0, 0], [1, 1], [0, 0], [0, 0]])
    monkeypatch.setattr(Draws, "tokens", lambda self, rows, canvas, number: torch.tensor([next(given)]))
    decoding = Decoding(max_new_tokens=6, steps=12, temperature=0.0, t_min=0.5, t_max=0.9)
    done = run(model, torch.tensor([[2, 2, 2]]), None, decoding)
    assert done.ids.tolist() == [[1, 0, 3, 3, 3, 3]]
    assert done.revealed_at.tolist() == [[0, 1, 3, -1, -1, -1]]
    assert done.confidence[0, :3].tolist() == pytest.approx([1.0] * 3)
    assert done.confidence[0, 3:].isnan().all()
    assert done.block.tolist() == [[0, 0, 1, 1, 2, 2]]
    assert [tokens.tolist() for tokens in model.asked] == [[[0, 0]], [[1, 2]], [[1, 0]], [[1, 1]], [[3, 2]]]
    assert [tokens.tolist() for tokens in model.read] == [[[2, 2, 2]], [[1, 0]]]
    assert [(e.place, e.token, e.written_at, e.until) for e in done.earlier[0]] == [(1, 2, 0, 1), (3, 2, 3, 5)]
    assert (done.forwards, done.row_forwards) == (7, 7)
    assert [signal is None for signal in model.signals] == [True, False, False, True, False]
    temperature = 0.5 + 0.4 * 4 / 4
    expected = (torch.tensor(steps[0]) / temperature).softmax(-1)
    assert torch.allclose(model.signals[1][0], expected, atol=1e-6)


def test_without_stopping_early_the_text_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = Told([[of_token(3), of_token(2)]] * 4)
    done = run(model, torch.tensor([[2]]), None, Decoding(max_new_tokens=4, temperature=0.0, stop_early=False))
    assert done.ids.tolist() == [[3, 2, 3, 2]]


def test_what_is_not_finite_is_an_error() -> None:
    model: Any = Told([[[float("nan")] * 4] * 2])
    with pytest.raises(UserError, match="the model's predictions are not finite"):
        run(model, torch.tensor([[2]]), None, Decoding(max_new_tokens=2))


@pytest.mark.shared
def test_the_draws_follow_the_predictions(model: Any, folder: Path) -> None:
    """One step of many rows of one prompt: what is kept is drawn by softmax(z), all else uniformly."""
    noise = RowNoise(0, range(20_000), torch.device("cpu"))
    draws = Draws(noise, 8, 4, 160)
    everyone = torch.arange(20_000)
    counts = draws.tokens(everyone, 1, 2).flatten().bincount(minlength=160).double()
    expected = counts.sum() / 160
    assert ((counts - expected).square() / expected).sum() < 230  # χ² of 159: 0.0002 lie beyond
    assert not torch.equal(draws.tokens(everyone, 0, 1), draws.tokens(everyone, 0, 2))
    assert not torch.equal(draws.tokens(everyone, 0, 4), draws.tokens(everyone, 1, 0))


# ---- batches and settings ----------------------------------------------------------------------------------------


@pytest.mark.shared
def test_an_answer_does_not_depend_on_its_batch(model: Any, folder: Path) -> None:
    """Prompts of unlike length, left-padded, whose canvases take unlike numbers of steps."""
    prompts = [case_of(folder, number)["prompt"] for number in range(5)]
    decoding = decoding_for(
        model, max_new_tokens=20, steps=12, seed=4, entropy_bound=3.0, confidence_threshold=1.9, stability_threshold=0
    )  # few steps: this model of random weights carries a last bit on, and makes it another token in ten
    alone = [run(model, torch.tensor([p]), None, decoding, row_seeds=[7 + i]) for i, p in enumerate(prompts)]
    assert len({done.forwards for done in alone}) > 1
    width = max(map(len, prompts)) + 3
    ids = torch.tensor([[5] * (width - len(p)) + p for p in prompts])
    shown = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    together = run(model, ids, shown, decoding, row_seeds=range(7, 12))
    for row, one in enumerate(alone):
        assert torch.equal(together.ids[row], one.ids[0])
        assert torch.equal(together.revealed_at[row], one.revealed_at[0])
        assert torch.allclose(together.confidence[row], one.confidence[0], atol=1e-4, equal_nan=True)
        assert together.earlier[row] == one.earlier[0]
    assert together.row_forwards < together.forwards * len(prompts)
    assert together.row_forwards == sum(one.row_forwards for one in alone)


@pytest.mark.shared
def test_settings_come_from_the_checkpoint(model: Any) -> None:
    found = decoding_for(model, max_new_tokens=12)
    assert (found.entropy_bound, found.t_min, found.t_max, found.temperature) == (0.1, 0.4, 0.8, 1.0)
    assert (found.stability_threshold, found.confidence_threshold, found.steps) == (1, 0.005, 96)
    assert (found.block_length, found.cache, decoding_for(model).max_new_tokens) == (8, "exact", 8)
    model.generation_config.t_max = 0.6
    model.generation_config.max_denoising_steps = 10
    model.config.default_decoding = {"confidence_threshold": 0.1, "max_new_tokens": 16}
    found = decoding_for(model)
    assert (found.t_max, found.steps, found.confidence_threshold, found.max_new_tokens) == (0.6, 20, 0.1, 16)
    said = found.described()
    assert (said["steps"], said["t_max"], said["entropy_bound"]) == (20, 0.6, 0.1)
    assert fitted(found, model) == found
    assert defaults_of(model)["confidence_threshold"] == 0.1


@pytest.mark.shared
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"threshold": 0.9, "reveal": "margin"}, "reveal, threshold: this model has no masks to reveal"),
        ({"top_k": 5}, "top_k: this model has no masks"),
        ({"guidance": 1.0}, "guidance: this model has no masks"),
        ({"block_length": 4}, "block_length = 4, but this model writes in blocks of 8 tokens"),
        ({"cache": "dual"}, "cache = dual"),
        ({"cache": "none"}, "cache = none: this model's encoder keeps what it has read"),
        ({"steps": 1, "max_new_tokens": 16}, "1 steps cannot finish 2 blocks"),
        ({"t_min": 0.9}, "t_min = 0.9, t_max = 0.8"),
        ({"entropy_bound": -1.0}, "entropy_bound = -1.0"),
    ],
)
def test_settings_that_it_cannot_follow_are_refused(settings: dict[str, Any], said: str, model: Any) -> None:
    with pytest.raises(UserError, match=said):
        decoding_for(model, **settings)


def test_models_that_mask_refuse_its_settings() -> None:
    import remask

    tiny, _ = remask.load("tiny-direct")
    with pytest.raises(UserError, match="entropy_bound: for models that replace tokens by others"):
        decoding_for(tiny, entropy_bound=0.2)


@pytest.mark.shared
def test_no_canvas_can_be_given(model: Any) -> None:
    with pytest.raises(UserError, match="this model has no mask token"):
        run(model, torch.tensor([[5, 6]]), None, Decoding(), canvas=torch.tensor([[1, 2]]))


@pytest.mark.shared
def test_prompts_of_no_token(model: Any) -> None:
    ids = denoise(model, torch.zeros(2, 0, dtype=torch.long), max_new_tokens=8, steps=2)
    assert ids.shape == (2, 8)


@pytest.fixture
def trained(model: Any) -> Any:
    return model.train()


@pytest.mark.shared
def test_the_model_is_left_as_it_was(trained: Any) -> None:
    decoding = replace(decoding_for(trained, max_new_tokens=8), steps=1)
    run(trained, torch.tensor([[5, 6]]), None, decoding)
    assert trained.training
