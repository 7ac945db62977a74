"""Methods of one's own, outside of the package: each example of examples/extend by hand, and named in a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import remask
from remask import cli
from remask.data.chat import encode_prompt
from remask.diffusion.corruption import Canvas, Corrupted
from remask.diffusion.objective import token_weights
from remask.diffusion.reader import ModelReader
from remask.errors import UserError
from remask.own_code import load_class
from remask.rl.presets import resolve as resolve_policy
from remask.sampling.engine import LocalEngine, Request, engine_of
from remask.sampling.schedule import Decoding
from remask.sft.presets import resolve
from remask.tasks import get
from remask.tasks.generated import generated_examples

EXTEND = Path(__file__).parents[2] / "examples" / "extend"
FOCAL, DISTILLED, CLIPPED = (
    str(EXTEND / name)
    for name in ("focal_weight.py:Focal", "distillation.py:Distilled", "clipped_weight.py:ClippedWeight")
)
COPIED, SORTING = (str(EXTEND / name) for name in ("copied_engine.py:Copied", "sorting_task.py:Sorting"))
RL = (
    *("--model", "tiny-direct", "--tasks", "sudoku", "--problems", "4", "--held-out.tasks", "none"),
    *("--rollout.prompts", "2", "--rollout.completions", "2"),
)
SFT = ("--model", "tiny-direct", "--data", "direct:sudoku:8", "--max-steps", "1", "--trainer.report-to", "none")


def masked_rows() -> tuple[Canvas, Corrupted]:
    """Two rows of two tokens, both masked, t = ½ and ¼."""
    ids, everywhere = torch.tensor([[5, 6], [7, 8]]), torch.ones(2, 2, dtype=torch.bool)
    time = torch.tensor([[0.5], [0.25]]).expand(2, 2)
    return Canvas(ids, everywhere, everywhere, everywhere), Corrupted(ids.fill_(1), everywhere, time, time)


def test_a_weight_with_a_parameter_by_hand() -> None:
    """(1 − p)^γ / t with p = ½ and ¼."""
    ce = torch.tensor([math.log(2), math.log(4)] * 2)
    focal = resolve(FOCAL, gamma=3.0)
    assert token_weights(focal, *masked_rows(), ce).tolist() == pytest.approx([0.25, 0.84375, 0.5, 1.6875])
    plain = resolve(FOCAL, gamma=0.0)
    assert token_weights(plain, *masked_rows(), ce).tolist() == pytest.approx([2, 2, 4, 4])


def test_a_run_records_the_parameter_and_the_version_of_the_file(tmp_path: Path) -> None:
    flags = ("--objective", FOCAL, "--choices.own", "gamma", "3", "--output-dir", str(tmp_path / "run"))
    assert cli.main(["sft", *SFT, *flags]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())["objective"]
    assert (record["name"], record["gamma"], len(record["version"])) == (FOCAL, 3.0, 8)


def test_distillation_by_hand(random_model: Any, another_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Σ_v q (log q − log p) of teacher q and student p, and nothing to learn where they are one."""
    distilled = load_class(DISTILLED, "an objective", ())(temperature=2.0)
    ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    answer = torch.zeros(2, 9, dtype=torch.bool)
    answer[:, 4:] = True
    canvas = Canvas(ids, torch.ones_like(answer), answer, answer)
    corrupted = Corrupted(ids.masked_fill(answer, 1), answer, answer.float(), torch.ones(2, 1))
    module = __import__("sys").modules[type(distilled).__module__]
    monkeypatch.setattr(module, "teacher", lambda: ModelReader(another_model))
    found = distilled.token_losses(ModelReader(random_model), canvas, corrupted, answer)
    p, q = (
        (model(input_ids=corrupted.ids).logits[answer] / 2).softmax(-1).double()
        for model in (random_model, another_model)
    )
    assert torch.allclose(found.double(), 4 * (q * (q.log() - p.log())).sum(-1), atol=1e-5)
    found.sum().backward()
    assert random_model.lm_head.weight.grad.abs().sum() > 0
    assert another_model.lm_head.weight.grad is None
    same = distilled.token_losses(ModelReader(another_model), canvas, corrupted, answer)
    assert same.abs().max() < 1e-5


def test_a_policy_objective_by_hand() -> None:
    """−clip(ρ)·A·log ρ; its gradient is −clip(ρ)·A, also where a clipped ratio would have none."""
    log_ratio = torch.tensor([math.log(2), math.log(0.5), 0.0], requires_grad=True)
    advantage = torch.tensor([1.0, 1.0, -2.0])
    loss = resolve_policy(CLIPPED).surrogate(log_ratio, advantage)
    assert loss.tolist() == pytest.approx([-1.2 * math.log(2), 0.8 * math.log(2), 0.0])
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratio)
    assert gradient.tolist() == pytest.approx([-1.2, -0.8, 2.0])


def test_a_task_by_hand() -> None:
    """3 7 20 sorted; an answer is worth the share of its places that are right."""
    task = get(SORTING)
    problem = task.read({"numbers": [20, 3, 7]})
    grades = [task.grade(problem, f"<answer>{text}</answer>") for text in ("3 7 20", "3 20 7", "3 7 20 20", "x")]
    assert [(grade.correct, grade.score) for grade in grades] == [
        (True, 1.0),
        (False, 1 / 3),
        (False, 0.75),
        (False, 0),
    ]


def test_a_task_makes_rows_to_train_on_and_problems_to_evaluate_on(tmp_path: Path) -> None:
    flags = ("--data", f"generated:{SORTING}:6:1", "--output-dir", str(tmp_path / "run"))
    assert cli.main(["sft", *SFT, *flags]) == 0
    record = tmp_path / "eval.json"
    settings = ("--n", "2", "--decoding.max-new-tokens", "16", "--decoding.steps", "2")
    assert cli.main(["eval", "--model", "tiny-direct", "--tasks", SORTING, *settings, "--json", str(record)]) == 0
    assert json.loads(record.read_text())["tasks"]["sorting"]["n"] == 2
    rows = generated_examples(f"generated:{SORTING}:3", split="train", prompt_style="compact")
    for row in rows:
        numbers = [int(number) for number in row.messages[0]["content"].removeprefix("Sort ").split()]
        assert row.answer["content"] == f"<answer>{' '.join(map(str, sorted(numbers)))}</answer>"


def test_an_engine_answers_with_the_weights_it_was_given() -> None:
    """As the local one to the bit; later weights count from the next update on, and answers say of which they are."""
    model, tokenizer = remask.load("tiny-direct")
    decoding = Decoding(max_new_tokens=8, steps=4, temperature=1.0)
    requests = [Request(encode_prompt(tokenizer, [{"role": "user", "content": "1 + 1"}]), seed) for seed in range(3)]
    own, local = engine_of(COPIED, tokenizer, 2), LocalEngine(tokenizer, 2, model=model)
    own.update(model, 0)
    before = own.answer(requests, decoding)
    assert [answer.row for answer in before] == [answer.row for answer in local.answer(requests, decoding)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1)
    assert [answer.row for answer in own.answer(requests, decoding)] == [answer.row for answer in before]
    own.update(model, 3)
    after = own.answer(requests, decoding)
    assert [answer.row for answer in after] == [answer.row for answer in local.answer(requests, decoding)]
    assert [answer.row for answer in after] != [answer.row for answer in before]
    assert [answer.version for answer in before + after] == [0, 0, 0, 3, 3, 3]


def test_an_engine_serves_rollouts_and_evaluation_as_the_local_one_does(tmp_path: Path) -> None:
    """The weights after two steps are the same to the bit; an own engine's evaluation has the same answers."""
    weights, answers = [], []
    for engine in ("local", COPIED):
        folder, record = tmp_path / f"rl-{len(weights)}", tmp_path / f"{len(weights)}.json"
        flags = ("--rollout.engine", engine, "--max-steps", "2", "--output-dir", str(folder))
        assert cli.main(["rl", *RL, *flags]) == 0
        weights.append(load_file(folder / "model.safetensors"))
        flags = ("--engine", engine, "--n", "2", "--tasks", "sudoku", "--json", str(record))
        assert cli.main(["eval", "--model", "tiny-direct", *flags]) == 0
        answers.append([p["completion"] for p in json.loads(record.read_text())["tasks"]["sudoku"]["problems"]])
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())
    assert answers[0] == answers[1]


def test_what_is_no_engine_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.py"
    path.write_text("class Own:\n    def answer(self, requests, decoding): ...\n")
    flags = ("--rollout.engine", f"{path}:Own", "--max-steps", "1", "--output-dir", str(tmp_path / "run"))
    assert cli.main(["rl", *RL, *flags]) == 2
    assert "Own lacks update" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("kind", "name"), [("sft", DISTILLED), ("rl", CLIPPED)])
def test_examples_run(tmp_path: Path, kind: str, name: str) -> None:
    flags = SFT if kind == "sft" else (*RL, "--max-steps", "1")
    config = tmp_path / "own.yaml"
    config.write_text(f"objective: {name}\n")  # in YAML as on the command line
    assert cli.main([kind, "--config", str(config), *flags, "--output-dir", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class Own: pass", "no frozen dataclass that builds on Objective"),
        ("from remask.diffusion.objective import Objective\nclass Own(Objective): pass", "no frozen dataclass"),
        (
            "from dataclasses import dataclass\nfrom remask.rl.policy_loss import PolicyObjective\n"
            "@dataclass(frozen=True)\nclass Own(PolicyObjective): pass",
            "builds on Objective",
        ),
        ("Own = 3", "there is no class Own"),
    ],
)
def test_what_is_no_objective_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        resolve(f"{path}:Own")


def test_a_parameter_that_an_objective_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--objective", FOCAL, "--choices.own", "gama", "3", "--output-dir", str(tmp_path / "run"))
    assert cli.main(["sft", *SFT, *flags]) == 2
    said = capsys.readouterr().err
    assert "gama: not a choice of the objective" in said
    assert "gamma" in said
