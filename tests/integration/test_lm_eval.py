"""The lm-evaluation-harness with `--model remask`: tasks that generate and tasks that score."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from remask.cli import main
from remask.diffusion.corruption import Canvas
from remask.diffusion.likelihood import elbo
from remask.diffusion.noise import Noise
from remask.errors import UserError
from remask.sampling.generate import generate
from remask.tasks import Sudoku

lm_eval = pytest.importorskip("lm_eval", reason="needs the harness: pip install 'remask[lm-eval]'")

from remask.evaluation.lm_eval import RemaskLM, cut  # noqa: E402

GENERATES = """
task: tiny_sudoku_answers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["</answer>"], max_gen_toks: 80, do_sample: false}}
filter_list:
  - name: grid
    filter: [{{function: regex, regex_pattern: "<answer>([1-4 ]+)"}}, {{function: take_first}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
CHOOSES = """
task: tiny_sudoku_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 generated puzzles; the choices are the right worked answer and one whose steps and grid are spoilt."""
    folder = tmp_path_factory.mktemp("tasks")
    task, rng = Sudoku(), random.Random(0)
    rows = []
    for number, problem in enumerate(task.generate(16, split="test", seed=1)):
        right = task.solve(problem, random.Random(number))
        choices = [right, task.solve(problem, random.Random(number), wrong=True)]
        label = rng.randrange(2)
        rows.append(
            {
                "question": task.prompt(problem, "compact"),
                "answer": right.partition("<answer>")[2].partition("</answer>")[0],
                "choices": choices if label == 0 else choices[::-1],
                "label": label,
            }
        )
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "generates.yaml").write_text(GENERATES.format(rows=path))
    (folder / "chooses.yaml").write_text(CHOOSES.format(rows=path))
    return folder


def test_the_harnesss_own_models_are_known_beside_it() -> None:
    from lm_eval.api.registry import model_registry

    assert {"remask", "hf", "vllm", "openai-completions"} <= set(model_registry.keys())


@pytest.fixture(autouse=True)
def no_cache_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def own_tasks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an index of the thousands of tasks that the harness brings along: most of a small evaluation's time."""
    import lm_eval.tasks

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))


@pytest.mark.usefixtures("own_tasks_alone")
def test_by_command(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The embedded model knows the puzzles' format: it solves most, and tells right answers from spoilt ones."""
    command = ["lm-eval", "--model", "remask", "--model_args", "pretrained=tiny,steps=20,draws=8,check_greedy=False"]
    command += ["--tasks", "tiny_sudoku_answers,tiny_sudoku_choices", "--include_path", str(tasks)]
    command += ["--apply_chat_template", "--output_path", str(tmp_path / "out")]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "tiny_sudoku_answers" in shown
    assert "tiny_sudoku_choices" in shown
    (record,) = (tmp_path / "out").rglob("results*.json")
    results = json.loads(record.read_text())
    assert results["results"]["tiny_sudoku_answers"]["exact_match,grid"] >= 0.4
    assert results["results"]["tiny_sudoku_choices"]["acc,none"] >= 0.8
    assert results["config"]["remask"]["elbo_draws"] == 8
    assert results["config"]["remask"]["decoding"]["steps"] == 20


def test_help_and_unknown_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["lm-eval", "--help"])
    assert "--model remask" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stepps": 3}, "unknown key 'stepps'"),
        ({"steps": "many"}, "steps: "),
        ({"temperature": "hot"}, "temperature: "),
        ({"draws": 0}, "draws = 0"),
        ({"draws": 1.5}, "draws = 1.5"),
        ({"draws": "many"}, "draws = many"),
        ({"seed": -1}, "seed = -1"),
        ({"max_length": 0}, "max_length = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"dtype": "float33"}, "unknown dtype"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RemaskLM("tiny", **arguments)


def instance(*args: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type="loglikelihood", doc={}, arguments=args, idx=0)


TEXTS = [("sudoku 12", "34 3412"), ("sudoku 12", "4"), ("", "countdown"), ("countdown 1 2 3 ->", " 6 and more")]


def test_likelihoods_depend_on_seed_and_text_alone() -> None:
    requests = [instance(*text) for text in TEXTS]
    one = RemaskLM("tiny", draws=4, batch_size=1).loglikelihood(requests, disable_tqdm=True)
    many = RemaskLM("tiny", draws=4, batch_size=8).loglikelihood(requests[::-1], disable_tqdm=True)[::-1]
    assert [value for value, _ in one] == pytest.approx([value for value, _ in many], abs=1e-3)
    assert [greedy for _, greedy in one] == [greedy for _, greedy in many]
    other = RemaskLM("tiny", draws=4, seed=1).loglikelihood(requests, disable_tqdm=True)
    changed = [abs(a - b) > 1e-3 for (a, _), (b, _) in zip(one, other, strict=True)]
    assert changed == [True, False, True, True]  # a single token is scored exactly, whatever is drawn


def test_one_token_is_scored_exactly() -> None:
    """With a single token to predict every draw masks it: the ELBO is its log-probability."""
    lm = RemaskLM("tiny", draws=2)
    ((value, greedy),) = lm.loglikelihood([instance("sudoku 123", "4")], disable_tqdm=True)
    context, token = lm.tok_encode("sudoku 123"), lm.tok_encode("4")
    ids = torch.tensor([[*context, lm.facts.mask_id]])
    with torch.no_grad():
        log_p = lm.model(input_ids=ids).logits[0, -1].log_softmax(-1)
    log_p_without_mask = log_p.clone()
    log_p_without_mask[lm.facts.mask_id] = -torch.inf
    assert value == pytest.approx(log_p[token[0]].item(), abs=1e-4)
    assert greedy == (log_p_without_mask.argmax().item() == token[0])


def test_the_value_is_the_elbo_of_its_draws() -> None:
    lm = RemaskLM("tiny", draws=3)
    ((value, _),) = lm.loglikelihood([instance("sudoku 12", "34 3412")], disable_tqdm=True)
    context, ending = lm.tok_encode("sudoku 12"), lm.tok_encode("34 3412")
    from remask.evaluation.lm_eval import _seed_of

    ids = torch.tensor([context + ending])
    response = torch.arange(ids.shape[1])[None] >= len(context)
    canvas = Canvas(ids, torch.ones_like(response), response, response)
    draws = []
    for draw in range(3):
        t, u = lm._noise(_seed_of(context), draw, len(ending))
        draws.append(Noise.at(torch.tensor([t]), torch.cat([torch.ones(len(context)), u])[None]))
    with torch.no_grad():
        assert value == pytest.approx(elbo(lm.model, canvas, draws, lm.facts.mask_id).sequence.item(), abs=1e-3)


def test_rolling_likelihoods_cover_every_window() -> None:
    text = "sudoku 2031 0002 0013 3004"
    whole = RemaskLM("tiny", draws=2).loglikelihood_rolling([instance(text)], disable_tqdm=True)
    split = RemaskLM("tiny", draws=2, max_length=12).loglikelihood_rolling([instance(text)], disable_tqdm=True)
    assert whole[0] < 0
    assert split[0] < 0
    assert whole != split


def test_generations_are_the_samplers() -> None:
    lm = RemaskLM("tiny", steps=20)
    prompt = "sudoku 2031 0002 0013 3004"
    context = lm.apply_chat_template([{"role": "user", "content": prompt}])
    (text,) = lm.generate_until([instance(context, {"until": ["</answer>"], "max_gen_toks": 80})], disable_tqdm=True)
    expected = generate(lm.model, lm.tokenizer, [prompt], max_new_tokens=80, steps=20).texts[0]
    assert text == expected.partition("</answer>")[0]
    assert "<answer>" in text


def test_what_decides_the_decoding() -> None:
    """The model_args, then what the task asks for or --gen_kwargs says: greedy where it is not to sample."""
    lm = RemaskLM("tiny", steps=20)
    asked = lm._decoding({"max_gen_toks": 40, "steps": 10, "reveal": "margin", "temperature": 0.7, "until": ["x"]})
    assert (asked.max_new_tokens, asked.steps, asked.reveal, asked.temperature) == (40, 20, "margin", 0.7)
    assert lm._decoding({"do_sample": False, "temperature": 0.7, "top_p": 0.9}).temperature == 0
    with pytest.raises(UserError, match="--gen_kwargs: reveal"):
        lm._decoding({"reveal": "loudly"})


def test_a_context_without_tokens() -> None:
    assert len(RemaskLM("tiny").generate_until([instance("", {"max_gen_toks": 4})], disable_tqdm=True)) == 1


def test_a_text_too_long_is_refused() -> None:
    lm = RemaskLM("tiny", max_length=16, draws=1)
    with pytest.raises(UserError, match="longer than max_length = 16"):
        lm.loglikelihood([instance("x" * 20, "y")], disable_tqdm=True)
    with pytest.raises(UserError, match="longer than max_length = 16"):
        lm.generate_until([instance("x", {"max_gen_toks": 40})], disable_tqdm=True)


def test_cutting() -> None:
    assert cut("a\n\nb", "\n\n") == "a"
    assert cut("a b c", ["c", "b", ""]) == "a "
    assert cut("a", None) == "a"
