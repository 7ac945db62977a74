"""The policy gradient of the sampler (docs/theory.md §12), by writing out every way an answer can come about.

A toy model has three places and two tokens, and its logits depend on the canvas. Under each order of reveal all drawn
tokens, kept or not, and all choices of places are enumerated in float64. P numbers are the toy's parameters.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor, nn

from remask.choices import LikelihoodName
from remask.diffusion.corruption import Canvas
from remask.diffusion.estimators import ESTIMATORS
from remask.diffusion.likelihood import COUPLED_RATES, Estimator, draw_values
from remask.diffusion.noise import Noise
from remask.diffusion.reader import LogitsReader
from remask.diffusion.trajectory import Trajectory
from remask.models.prediction import Prediction, predicted
from remask.rl.rollout_rows import until_end
from remask.sampling import Decoding, run

PLACES, TOKENS, MASK, END = 3, 2, 3, 2
Board = tuple[int, ...]
ANSWERS = tuple(itertools.product(range(TOKENS), repeat=PLACES))
REWARD = dict(zip(ANSWERS, (0.0, 1.0, 0.3, -0.5, 2.0, 0.1, -1.0, 0.7), strict=True))
UP_TO_END = {a: REWARD[a[: a.index(1)] + (1,) * (PLACES - a.index(1)) if 1 in a else a] for a in ANSWERS}
"""The rewards where token 1 ends a text, and what stands behind it is of no account."""
Logits = Callable[[Tensor, Tensor], Tensor]
"""(parameters, canvases [R, 3]) → logits [R, 3, 2]."""


def pairwise(theta: Tensor, boards: Tensor) -> Tensor:
    """Each place's logits are a sum over what stands at every place."""
    weights = theta.reshape(PLACES, PLACES, MASK + 1, TOKENS)
    return torch.stack([weights[:, p, boards[:, p]] for p in range(PLACES)]).sum(0).transpose(0, 1)


def by_table(theta: Tensor, boards: Tensor) -> Tensor:
    """Each canvas has logits of its own."""
    number = (boards * torch.tensor([(MASK + 1) ** p for p in range(PLACES)])).sum(-1)
    return theta.reshape((MASK + 1) ** PLACES, PLACES, TOKENS)[number]


def random_theta(seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = PLACES * PLACES * (MASK + 1) * TOKENS
    return torch.randn(size, generator=generator, dtype=torch.float64) * scale


THETA = random_theta(2)


@dataclass(frozen=True)
class Toy:
    """A model at its parameters. temperature: of the draws."""

    theta: Tensor
    logits: Logits = pairwise
    temperature: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", cache(self.p))
        object.__setattr__(self, "q", cache(self.q))
        object.__setattr__(self, "score", cache(self.score))

    def p(self, board: Board) -> Tensor:
        """What the model gives each token [3, 2], before temperature: confidences."""
        return self.logits(self.theta, torch.tensor([board]))[0].softmax(-1)

    def q(self, board: Board) -> Tensor:
        """What tokens are drawn with."""
        return (self.logits(self.theta, torch.tensor([board]))[0] / self.temperature).softmax(-1)

    def score(self, board: Board) -> Tensor:
        """∇ log q [3, 2, P]."""

        def log_q(theta: Tensor) -> Tensor:
            return (self.logits(theta, torch.tensor([board]))[0] / self.temperature).log_softmax(-1)

        return torch.autograd.functional.jacobian(log_q, self.theta)


Kept = Iterator[tuple[float, tuple[int, ...]]]
Rule = Callable[[Toy, Board, dict[int, int]], Kept]
"""(model, canvas, tokens drawn for its masked places) → which places are kept, and how likely."""


def in_random_order(toy: Toy, board: Board, drawn: dict[int, int], *, count: int = 1) -> Kept:
    choices = list(itertools.combinations(sorted(drawn), min(count, len(drawn))))
    yield from ((1 / len(choices), kept) for kept in choices)


def from_the_left(toy: Toy, board: Board, drawn: dict[int, int], *, count: int = 1) -> Kept:
    yield 1.0, tuple(sorted(drawn)[:count])


def two_at_random(toy: Toy, board: Board, drawn: dict[int, int]) -> Kept:
    return in_random_order(toy, board, drawn, count=2)


def all_at_once(toy: Toy, board: Board, drawn: dict[int, int]) -> Kept:
    return from_the_left(toy, board, drawn, count=PLACES)


def by_confidence(toy: Toy, board: Board, drawn: dict[int, int]) -> Kept:
    p = toy.p(board).detach()
    yield 1.0, (max(drawn, key=lambda i: (p[i, drawn[i]].item(), -i)),)


THRESHOLD = 0.7


def above_threshold(toy: Toy, board: Board, drawn: dict[int, int]) -> Kept:
    p = toy.p(board).detach()
    above = tuple(i for i in sorted(drawn) if p[i, drawn[i]] >= THRESHOLD)
    yield from [(1.0, above)] if above else by_confidence(toy, board, drawn)


def by_margin(toy: Toy, board: Board, drawn: dict[int, int]) -> Kept:
    """A score that depends on the canvas alone, and not on what is drawn."""
    p = toy.p(board).detach()
    yield 1.0, (max(drawn, key=lambda i: ((p[i, 0] - p[i, 1]).abs().item(), -i)),)


FREE: dict[str, Rule] = {"random": in_random_order, "left_to_right": from_the_left, "two": two_at_random}
"""Orders in which the weights have no say."""
BY_DRAWS: dict[str, Rule] = {"confidence": by_confidence, "threshold": above_threshold}
"""Orders in which the weights and the drawn tokens have a say."""


@dataclass(frozen=True)
class Step:
    """What was on the canvas, what was drawn for every masked place, and which places kept theirs."""

    board: Board
    drawn: dict[int, int]
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Path:
    """One way to write an answer, and how likely it is, with gradient: the product over steps of the probability of all
    drawn tokens and of the choice of places, the latter as a constant.
    """

    chance: Tensor
    steps: tuple[Step, ...]
    answer: Board

    @property
    def written(self) -> Board:
        """The step that wrote each token."""
        found = {place: number for number, step in enumerate(self.steps) for place in step.kept}
        return tuple(found[i] for i in range(PLACES))


def paths(
    toy: Toy, rule: Rule, board: Board = (MASK,) * PLACES, so_far: Tensor | None = None, steps: tuple[Step, ...] = ()
) -> Iterator[Path]:
    chance = torch.ones((), dtype=torch.float64) if so_far is None else so_far
    masked = [i for i, token in enumerate(board) if token == MASK]
    if not masked:
        yield Path(chance, steps, board)
        return
    q = toy.q(board)
    for tokens in itertools.product(range(TOKENS), repeat=len(masked)):
        drawn = dict(zip(masked, tokens, strict=True))
        of_draws = torch.stack([q[i, v] for i, v in drawn.items()]).prod()
        for share, kept in rule(toy, board, drawn):
            after = tuple(drawn[i] if i in kept else token for i, token in enumerate(board))
            yield from paths(toy, rule, after, chance * of_draws * share, (*steps, Step(board, drawn, kept)))


def value(toy: Toy, rule: Rule, reward: dict[Board, float] = REWARD) -> Tensor:
    """E[reward]."""
    return torch.stack([path.chance * reward[path.answer] for path in paths(toy, rule)]).sum()


def slope(toy: Toy, rule: Rule, reward: dict[Board, float] = REWARD) -> Tensor:
    """∇ E[reward], exactly: by the chain rule through every path."""
    theta = toy.theta.clone().requires_grad_()
    (found,) = torch.autograd.grad(value(Toy(theta, toy.logits, toy.temperature), rule, reward), theta)
    return found


def estimated(toy: Toy, rule: Rule, *, whole: bool, baseline: float | None = None) -> Tensor:
    """E[A · Σ_steps Σ_i ∇ log q(x_i | canvas)], over the tokens that were kept or over all that were drawn."""
    every = list(paths(toy, rule))
    mean = sum(path.chance * REWARD[path.answer] for path in every) if baseline is None else baseline
    total = torch.zeros_like(toy.theta)
    for path in every:
        scores = [
            toy.score(step.board)[i, step.drawn[i]] for step in path.steps for i in (step.drawn if whole else step.kept)
        ]
        total += path.chance * (REWARD[path.answer] - mean) * torch.stack(scores).sum(0)
    return total


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()


@pytest.mark.parametrize("rule", [*FREE.values(), *BY_DRAWS.values(), by_margin])
def test_the_chain_rule_gives_what_differences_give(rule: Rule) -> None:
    """Central differences along four directions, the order chosen anew at both ends."""
    toy, h = Toy(THETA), 1e-5
    for seed in range(4):
        along = random_theta(100 + seed)
        up, down = (value(Toy(THETA + sign * h * along), rule).item() for sign in (1, -1))
        assert (slope(toy, rule) @ along).item() == pytest.approx((up - down) / (2 * h), abs=1e-8)


# ---- (a) orders in which the weights have no say -----------------------------------------------------------------


@pytest.mark.parametrize("name", FREE)
def test_the_tokens_that_are_kept_give_the_gradient_where_the_order_is_free_of_the_weights(name: str) -> None:
    toy = Toy(THETA)
    assert torch.stack([path.chance for path in paths(toy, FREE[name])]).sum().item() == pytest.approx(1)
    truth = slope(toy, FREE[name])
    kept = estimated(toy, FREE[name], whole=False)
    assert torch.allclose(kept, truth, atol=1e-8)
    # What was drawn and thrown away is noise: it changes no expectation. Neither does a baseline.
    assert torch.allclose(estimated(toy, FREE[name], whole=True), kept, atol=1e-12)
    assert torch.allclose(estimated(toy, FREE[name], whole=False, baseline=5.0), kept, atol=1e-12)


def test_a_score_that_does_not_look_at_the_draws_is_free_but_for_its_jumps() -> None:
    toy = Toy(THETA)
    assert torch.allclose(estimated(toy, by_margin, whole=False), slope(toy, by_margin), atol=1e-8)


@pytest.mark.parametrize("name", ["random", "confidence"])
def test_temperature_changes_what_is_drawn_and_so_the_log_probability(name: str) -> None:
    """Drawn at temperature 2 and scored at 1 the gradient is another one."""
    rule = (FREE | BY_DRAWS)[name]
    toy = Toy(THETA, temperature=2.0)
    truth = slope(toy, rule)
    assert torch.allclose(estimated(toy, rule, whole=True), truth, atol=1e-8)
    at_one = Toy(THETA)
    wrong = torch.zeros_like(truth)
    mean = value(toy, rule)
    for path in paths(toy, rule):
        gain = path.chance * (REWARD[path.answer] - mean)
        wrong += gain * sum(at_one.score(s.board)[i, s.drawn[i]] for s in path.steps for i in s.drawn)
    assert 0 < cosine(wrong, truth) < 0.9999


def test_at_temperature_zero_the_slope_is_zero_and_the_value_jumps() -> None:
    """The likeliest token is drawn with probability 1, whose logarithm has no gradient."""

    def greedy(theta: Tensor) -> float:
        board: Board = (MASK,) * PLACES
        while MASK in board:
            p = Toy(theta).p(board)
            place = max((i for i in range(PLACES) if board[i] == MASK), key=lambda i: p[i].max().item())
            board = tuple(int(p[i].argmax()) if i == place else token for i, token in enumerate(board))
        return REWARD[board]

    direction = random_theta(11)
    values = [greedy(THETA + a * direction) for a in torch.linspace(-3, 3, 601).tolist()]
    changes = [abs(a - b) for a, b in itertools.pairwise(values) if a != b]
    assert 0 < len(changes) < 20
    assert min(changes) > 0.01
    almost = [slope(Toy(THETA, temperature=t), by_confidence).norm().item() for t in (1.0, 0.1, 0.01)]
    assert almost[0] > almost[1] > almost[2] < 1e-6


# ---- (b) orders by confidence ------------------------------------------------------------------------------------


def thrown_away(toy: Toy, step: Step, rule: Rule) -> dict[int, list[int]]:
    """For each place that was not kept, the tokens that could have been drawn there without its being kept in place of
    those that were: of a lower probability than the least of those kept, or than the threshold.
    """
    p = toy.p(step.board).detach()
    least = min(p[i, step.drawn[i]].item() for i in step.kept)
    bar = THRESHOLD if rule is above_threshold and least >= THRESHOLD else least
    return {j: [v for v in range(TOKENS) if p[j, v].item() < bar] for j in step.drawn if j not in step.kept}


@pytest.mark.parametrize("name", BY_DRAWS)
def test_the_probability_of_a_transition_has_a_factor_for_every_place_that_was_not_kept(name: str) -> None:
    """P(c → c′) = Π_kept q(x_i) · Π_others P(its draw stays below), and not Π_kept q(x_i)."""
    toy, rule = Toy(THETA), BY_DRAWS[name]
    board: Board = (MASK,) * PLACES
    q = toy.q(board)
    found: dict[tuple[Board, tuple[int, ...]], float] = defaultdict(float)
    steps: dict[tuple[Board, tuple[int, ...]], Step] = {}
    for tokens in ANSWERS:
        drawn = dict(enumerate(tokens))
        ((_, kept),) = rule(toy, board, drawn)
        after = tuple(drawn[i] if i in kept else MASK for i in range(PLACES))
        found[after, kept] += torch.stack([q[i, v] for i, v in drawn.items()]).prod().item()
        steps[after, kept] = Step(board, drawn, kept)
    assert sum(found.values()) == pytest.approx(1)
    factors = []
    for key, step in steps.items():
        of_kept = math.prod(q[i, step.drawn[i]].item() for i in step.kept)
        below = math.prod(q[j, tokens].sum().item() for j, tokens in thrown_away(toy, step, rule).items())
        assert found[key] == pytest.approx(of_kept * below)
        factors.append(below)
    assert min(factors) < 0.5


@pytest.mark.parametrize("name", BY_DRAWS)
def test_under_confidence_all_draws_give_the_gradient_and_those_kept_do_not(name: str) -> None:
    toy, rule = Toy(THETA), BY_DRAWS[name]
    truth = slope(toy, rule)
    assert torch.allclose(estimated(toy, rule, whole=True), truth, atol=1e-8)
    assert torch.allclose(estimated(toy, rule, whole=True, baseline=5.0), truth, atol=1e-8)
    kept = estimated(toy, rule, whole=False)
    assert cosine(kept, truth) < 0.95
    # The kept tokens' scores do not add up to 0, so that a baseline is not free either.
    assert not torch.allclose(estimated(toy, rule, whole=False, baseline=5.0), kept, atol=0.05)


@pytest.mark.parametrize("name", BY_DRAWS)
def test_what_the_kept_tokens_lack_is_the_score_of_being_chosen(name: str) -> None:
    """E[A · Σ_steps Σ_not kept ∇ log P(its draw stays below)], with the sets of tokens that stay below held fixed."""
    toy, rule = Toy(THETA), BY_DRAWS[name]
    mean, lacking = value(toy, rule), torch.zeros_like(THETA)
    for path in paths(toy, rule):
        for step in path.steps:
            for j, tokens in thrown_away(toy, step, rule).items():
                q, score = toy.q(step.board)[j], toy.score(step.board)[j]
                of_below = (q[tokens, None] * score[tokens]).sum(0) / q[tokens].sum()
                lacking += path.chance * (REWARD[path.answer] - mean) * of_below
    missing = estimated(toy, rule, whole=True) - estimated(toy, rule, whole=False)
    assert lacking.norm() > 0.05
    assert torch.allclose(lacking, missing, atol=1e-10)


def test_no_gradient_sees_the_jumps_where_two_confidences_tie() -> None:
    """Along a line E[reward] changes by the integral of its slope and by its jumps. At a tie of token v at place i and
    w at place j on the bare canvas the jump is q_i(v)·q_j(w)·(the value of keeping the one less that of the other),
    over what may be drawn for the third place without being kept.
    """

    def at(a: float) -> Toy:
        theta = THETA.clone().reshape(PLACES, PLACES, MASK + 1, TOKENS)
        theta[0, 0, MASK, 0] += a  # the bias of token 0 at place 0
        return Toy(theta.flatten())

    def order(a: float) -> list[tuple[Board, list[int]]]:
        boards = itertools.product((*range(TOKENS), MASK), repeat=PLACES)
        return [
            (b, at(a).p(b)[[i for i in range(PLACES) if b[i] == MASK]].flatten().argsort().tolist()) for b in boards
        ]

    grid = torch.linspace(0.0, 1.0, 41).tolist()
    ties = []
    for low, high in itertools.pairwise(grid):
        if order(low) != order(high):
            for _ in range(40):
                middle = (low + high) / 2
                low, high = (middle, high) if order(middle) == order(low) else (low, middle)
            ties.append((low, high))
    assert ties
    ends = [0.0, *(end for tie in ties for end in tie), 1.0]
    nodes, weights = leggauss(6)
    smooth = 0.0
    for low, high in zip(ends[::2], ends[1::2], strict=True):
        for x, w in zip(nodes, weights, strict=True):
            a = low + (high - low) * (x + 1) / 2
            along = slope(at(a), by_confidence).reshape(PLACES, PLACES, MASK + 1, TOKENS)[0, 0, MASK, 0]
            smooth += (high - low) / 2 * w * along.item()
    jumps = [value(at(high), by_confidence).item() - value(at(low), by_confidence).item() for low, high in ties]
    whole = value(at(1.0), by_confidence).item() - value(at(0.0), by_confidence).item()
    assert max(map(abs, jumps)) > 0.01
    assert whole == pytest.approx(smooth + sum(jumps), abs=1e-7)
    assert abs(whole - smooth) > 0.01


# ---- (c) the repository's likelihoods ----------------------------------------------------------------------------


def draws_of(name: LikelihoodName) -> list[tuple[float, Noise]]:
    """Every draw of a likelihood's noise that differs, and how likely it is."""
    orders = list(itertools.permutations(range(PLACES)))

    def noise(tau: float, u: Sequence[float]) -> Noise:
        return Noise(torch.full((1, PLACES), tau, dtype=torch.float64), torch.tensor([u]))

    if name in ("elbo", "elbo_coupled"):
        cells = PLACES + (name == "elbo_coupled")
        each = 1 / (cells * len(orders))
        return [(each, noise((k + 0.5) / cells, [o / 10 for o in order])) for k in range(cells) for order in orders]
    if name == "coupled":  # polynomials in the rate
        low, high = COUPLED_RATES
        found = []
        for x, w in zip(*leggauss(PLACES + 1), strict=True):
            tau = (x + 1) / 2
            rate = low + (high - low) * tau
            for mask in itertools.product((False, True), repeat=PLACES):
                chance = math.prod(rate if m else 1 - rate for m in mask)
                found.append((w / 2 * chance, noise(tau, [0.0 if m else 1.0 for m in mask])))
        return found
    return [(1.0, noise(0.5, [0.5] * PLACES))]


def by_likelihood(
    toy: Toy, rule: Rule, name: LikelihoodName, estimator: Estimator | None = None, *, ends: bool = False
) -> Tensor:
    """E[A · ∇ℓ(answer)] with a likelihood of the repository's, over its noise and over all paths. ends: token 1 ends a
    text, and only what stands up to it is scored.
    """
    estimator, reward = estimator or ESTIMATORS[name], UP_TO_END if ends else REWARD
    every, gain = list(paths(toy, rule)), defaultdict[tuple[Board, Board], float](float)
    mean = sum(path.chance * reward[path.answer] for path in every)
    for path in every:
        gain[path.answer, path.written] += float(path.chance * (reward[path.answer] - mean))
    ids, written = (torch.tensor(rows) for rows in zip(*gain, strict=True))
    yes = torch.ones_like(ids, dtype=torch.bool)
    scored = until_end(ids, yes, torch.tensor([1])) if ends else yes
    canvas = Canvas(ids, yes, yes, scored, written)
    theta = toy.theta.clone().requires_grad_()
    reader = LogitsReader(lambda boards, attended, places: toy.logits(theta, boards)[places].float())
    total = torch.zeros(len(ids))
    for chance, noise in draws_of(name):
        rows = noise.each(lambda x: x.expand(len(ids), -1))
        draws = estimator.draws(canvas, [rows], MASK)
        total = total + chance * estimator.combine(draw_values(reader, canvas, draws), draws).sum(-1)
    (found,) = torch.autograd.grad((total * torch.tensor(list(gain.values()))).sum(), theta)
    return found


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=2e-6)


OTHERS: tuple[LikelihoodName, ...] = ("mean_field", "elbo", "elbo_coupled", "coupled", "pseudo")


@pytest.mark.parametrize("name", FREE)
def test_the_trajectory_has_the_gradient_of_the_sampler_and_the_others_have_not(name: str) -> None:
    toy, rule = Toy(THETA), FREE[name]
    truth = slope(toy, rule)
    assert same(by_likelihood(toy, rule, "trajectory"), truth)
    for other in OTHERS:
        found = by_likelihood(toy, rule, other)
        assert not same(found, truth)
        assert cosine(found, truth) < 0.999
    left = by_likelihood(toy, rule, "left_to_right")
    assert same(left, truth) == (rule is from_the_left)


def test_the_whole_answer_at_once_is_what_the_mean_field_has_the_gradient_of() -> None:
    toy = Toy(THETA)
    truth = slope(toy, all_at_once)
    assert same(by_likelihood(toy, all_at_once, "mean_field"), truth)
    assert same(by_likelihood(toy, all_at_once, "trajectory"), truth)
    assert not same(by_likelihood(toy, all_at_once, "elbo"), truth)


@pytest.mark.parametrize("name", BY_DRAWS)
def test_under_confidence_the_trajectory_has_the_gradient_of_the_kept_tokens_alone(name: str) -> None:
    toy, rule = Toy(THETA), BY_DRAWS[name]
    found = by_likelihood(toy, rule, "trajectory")
    assert same(found, estimated(toy, rule, whole=False))
    assert not same(found, slope(toy, rule))


def test_steps_that_are_scored_together_are_scored_on_a_canvas_that_did_not_draw_them() -> None:
    toy = Toy(THETA)
    truth = slope(toy, in_random_order)
    for parts in (Trajectory(run=2), Trajectory(segments=2)):
        assert cosine(by_likelihood(toy, in_random_order, "trajectory", parts), truth) < 0.999


def test_tokens_behind_the_end_are_left_out_at_no_cost_from_left_to_right_alone() -> None:
    """Written earlier than what stands before the end, they were on the canvas that drew it; scored up to the end,
    answers are read without them.
    """
    toy = Toy(THETA)
    truth = slope(toy, from_the_left, UP_TO_END)
    assert same(by_likelihood(toy, from_the_left, "trajectory", ends=True), truth)
    assert same(by_likelihood(toy, from_the_left, "left_to_right", ends=True), truth)
    in_any_order = by_likelihood(toy, in_random_order, "trajectory", ends=True)
    assert cosine(in_any_order, slope(toy, in_random_order, UP_TO_END)) < 0.999


def test_the_elbo_is_the_trajectory_with_its_order_drawn_anew() -> None:
    """∇ELBO(x) is the mean over all orders alike; the sampler's is over those that x was written in."""
    toy = Toy(THETA)
    gain: dict[Board, float] = defaultdict(float)
    mean = value(toy, in_random_order)
    for path in paths(toy, in_random_order):
        gain[path.answer] += float(path.chance * (REWARD[path.answer] - mean))
    anew = torch.zeros_like(THETA)
    orders = list(itertools.permutations(range(PLACES)))
    for answer, weight in gain.items():
        for order in orders:
            for n, place in enumerate(order):
                board = tuple(answer[i] if i in order[:n] else MASK for i in range(PLACES))
                anew += weight / len(orders) * toy.score(board)[place, answer[place]]
    assert same(by_likelihood(toy, in_random_order, "elbo"), anew)
    assert same(by_likelihood(toy, in_random_order, "elbo_coupled"), anew)


def consistent(seed: int = 5) -> Tensor:
    """Parameters of a table whose predictions are all conditionals of one joint distribution: the order does not
    matter.
    """
    joint = torch.rand(*[TOKENS] * PLACES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05
    table = torch.zeros((MASK + 1) ** PLACES, PLACES, TOKENS, dtype=torch.float64)
    for board in itertools.product((*range(TOKENS), MASK), repeat=PLACES):
        number = sum(token * (MASK + 1) ** p for p, token in enumerate(board))
        for place in range(PLACES):
            for v in range(TOKENS):
                seen = tuple(v if p == place else token for p, token in enumerate(board))
                table[number, place, v] = joint[tuple(slice(None) if t == MASK else t for t in seen)].sum().log()
    return table.flatten()


def test_where_the_order_does_not_matter_the_elbo_has_the_gradient_of_the_sampler() -> None:
    """Of a model whose predictions are conditionals of one distribution, at that point: p of an answer is then the same
    in all orders, and the bound is tight. Of the other likelihoods none has it.
    """
    toy = Toy(consistent(), by_table)
    truth = slope(toy, in_random_order)
    assert same(by_likelihood(toy, in_random_order, "trajectory"), truth)
    for name in ("elbo", "elbo_coupled"):
        assert same(by_likelihood(toy, in_random_order, name), truth)
    for name in ("mean_field", "coupled", "pseudo"):
        assert cosine(by_likelihood(toy, in_random_order, name), truth) < 0.95


def test_the_mean_gradient_of_the_elbo_is_not_zero_so_that_a_baseline_is_not_free() -> None:
    every: dict[Board, Tensor] = defaultdict(lambda: torch.zeros(()))
    toy = Toy(THETA)
    for path in paths(toy, in_random_order):
        every[path.answer] = every[path.answer] + path.chance
    ids = torch.tensor(list(every))
    yes = torch.ones_like(ids, dtype=torch.bool)
    theta = toy.theta.clone().requires_grad_()
    reader = LogitsReader(lambda boards, attended, places: toy.logits(theta, boards)[places].float())
    total = torch.zeros(len(ids))
    for chance, noise in draws_of("elbo"):
        rows = noise.each(lambda x: x.expand(len(ids), -1))
        draws = ESTIMATORS["elbo"].draws(Canvas(ids, yes, yes, yes), [rows], MASK)
        total = total + chance * draw_values(reader, Canvas(ids, yes, yes, yes), draws)[0].sum(-1)
    (found,) = torch.autograd.grad((total * torch.stack(list(every.values())).float()).sum(), theta)
    assert found.norm() > 0.01


# ---- the sampler of the repository -------------------------------------------------------------------------------


class Answering(nn.Module):
    """The toy behind the interface that the sampler calls; after a prompt of one token. It never ends a text."""

    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.toy = toy
        self.config = SimpleNamespace(mask_token_id=MASK, eos_token_id=END, stop_token_ids=None)

    def forward(self, input_ids: Any, attention_mask: Any, positions: Any, look: Any = None) -> Prediction:
        logits = self.toy.logits(self.toy.theta, input_ids[:, 1:]).float()
        logits = torch.nn.functional.pad(logits, (0, 2), value=-torch.inf)
        return predicted(nn.Identity(), logits[positions[:, 1:]], look=look)


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (in_random_order, {"reveal": "random"}),
        (from_the_left, {"reveal": "left_to_right"}),
        (two_at_random, {"reveal": "random", "steps": 2}),
        (by_confidence, {"reveal": "confidence"}),
        (by_margin, {"reveal": "margin"}),
        (above_threshold, {"reveal": "confidence", "threshold": THRESHOLD}),
    ],
)
def test_the_sampler_draws_the_paths_that_are_written_out(rule: Rule, settings: dict[str, Any]) -> None:
    """How often each answer is written in each order, of 20,000: within five standard errors of what was computed."""
    toy, rows = Toy(THETA), 20_000
    expected: dict[tuple[Board, Board], float] = defaultdict(float)
    for path in paths(toy, rule):
        expected[path.answer, path.written] += path.chance.item()
    prompt = torch.zeros(rows, 1, dtype=torch.long)
    written = run(Answering(toy), prompt, None, Decoding(max_new_tokens=PLACES, temperature=1.0, **settings))
    seen: dict[tuple[Board, Board], int] = defaultdict(int)
    for answer, steps in zip(written.ids.tolist(), written.revealed_at.tolist(), strict=True):
        seen[tuple(answer), tuple(steps)] += 1
    assert set(seen) <= set(expected)
    for key, chance in expected.items():
        assert abs(seen[key] / rows - chance) < 5 * math.sqrt(chance * (1 - chance) / rows) + 1e-4
