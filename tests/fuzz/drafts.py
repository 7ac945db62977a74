"""Commands that work, to be spoiled: their words, options and files."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from remask import config as configs
from remask.cli import main
from remask.commands.compare import CompareConfig
from remask.commands.report import ReportConfig
from remask.commands.study import StudyOptions
from remask.models.load import EMBEDDED

MODEL = "tiny-direct"
CANVAS = {"max_new_tokens": 8, "steps": 2}
ENGINE = {"per_device_train_batch_size": 2, "logging_steps": 1, "report_to": ["none"]}
TURNS = [{"role": "user", "content": "say b"}, {"role": "assistant", "content": "bbb"}]
ROWS = (
    {"prompt": "say a", "completion": "aaaa"},
    {"messages": TURNS},
    {"question": "say c", "answer": "ccc", "system": "be brief"},
    {"instruction": "say", "input": "d", "output": "dd"},
)
PAIRS = (
    {"prompt": "say a", "chosen": "aaaa", "rejected": "b"},
    {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "x"}]},
)
PROMPTS = ({"prompt": "say a", "answer": "a"}, {"messages": TURNS[:1], "note": 3})


@dataclass
class Draft:
    """A command before it is written down. `settings` go into a file of options where `takes_file`, else into flags;
    `trees` are files that a structure is written into, by name; `files` other ones (None: a folder); `gone` those that
    are not written after all.
    """

    command: str
    kind: type
    words: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    takes_file: bool = False
    trees: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes | None] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    stdin: str = ""
    hopeless: bool = False
    """Whether what was changed must be refused."""


def training(command: str, kind: type, trees: dict[str, Any], **settings: Any) -> Draft:
    values = {"model": MODEL, "output_dir": "out", "max_steps": 1, **settings, "trainer": dict(ENGINE)}
    return Draft(command, kind, settings=values, takes_file=True, trees=trees)


def sft(chance: random.Random) -> Draft:
    objective = chance.choice(("sft", "gift", "gift-permuted", "cart", "rho1", "lift3"))
    draft = training("sft", configs.SftConfig, {"rows.jsonl": list(ROWS)}, data="rows.jsonl", objective=objective)
    draft.settings["report"] = {"diagnostics": chance.choice(("auto", "off"))}
    if chance.random() < 0.3:
        draft.settings |= {"lora": {"rank": 2}, "eval_data": "rows.jsonl", "on_bad_row": "skip"}
    return draft


def dpo(chance: random.Random) -> Draft:
    data = {"pairs.jsonl": list(PAIRS)}
    return training("dpo", configs.DpoConfig, data, data="pairs.jsonl", objective=chance.choice(("vrpo", "dpo")))


def rl(chance: random.Random) -> Draft:
    own = {"data": "prompts.jsonl", "rewards": {"functions": ["length", "share:a"]}}
    asked = own if chance.random() < 0.5 else {"tasks": "countdown", "problems": 2}
    draft = training("rl", configs.RlConfig, {"prompts.jsonl": list(PROMPTS)}, **asked)
    draft.settings |= {"held_out": {"tasks": "none"}, "objective": chance.choice(("espo", "diffu-grpo", "wd1"))}
    draft.settings["rollout"] = {"prompts": 1, "completions": 2, "decoding": dict(CANVAS)}
    return draft


def resumed(chance: random.Random) -> Draft:
    """A run with a checkpoint after its first step, to go on with."""
    draft = Draft("sft", configs.SftConfig, settings={"config": "out/config.yaml", "resume": "auto", "max_steps": 2})
    draft.files = {f"out/{name}": content for name, content in finished_run().items()}
    draft.files["rows.jsonl"] = as_rows()
    return draft


def evaluation(chance: random.Random) -> Draft:
    settings = {"model": MODEL, "n": 2, "json": "record.json", "decoding": dict(CANVAS)}
    if chance.random() < 0.4:
        settings |= {"data": "rows.jsonl", "likelihood": True, "draws": 2}
    else:
        settings["tasks"] = chance.choice(("countdown", "match=rows.jsonl", "match=rows.jsonl,sudoku"))
    return Draft("eval", configs.EvalConfig, settings=settings, trees={"rows.jsonl": list(ROWS)})


def own_task(chance: random.Random) -> Draft:
    """Rewards, templates and prompts in files of one's own."""
    draft = rl(chance)
    draft.settings |= {"data": "prompts.jsonl", "rewards": {"functions": ["own.py:reward"]}}
    draft.settings |= {"prompt_template": "@template.txt", "system": "be brief", "prefill": "<a>"}
    draft.settings.pop("tasks", None)
    body = chance.choice(
        ("[0.5] * len(completions)", "[float('nan')] * len(completions)", "[1]", "'x'", "1 / 0", "None")
    )
    draft.files["own.py"] = f"def reward(completions, **columns):\n    return {body}\n".encode()
    draft.files["template.txt"] = b"Q: {prompt}"
    return draft


def tables(chance: random.Random) -> Draft:
    """Rows in a table."""
    import pyarrow
    import pyarrow.parquet

    draft = sft(chance) if chance.random() < 0.5 else evaluation(chance)
    draft.trees.pop("rows.jsonl")
    kind = chance.choice(("csv", "tsv", "json", "parquet", "jsonl.gz"))
    if kind == "parquet":
        out = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROWS[0]] * 3), out)
        content = out.getvalue()
    elif kind in ("csv", "tsv"):
        comma = "," if kind == "csv" else "\t"
        content = f'prompt{comma}completion\nsay a{comma}aaa\n"say, ""b"""{comma}bbb\n'.encode()
    else:
        content = json.dumps(list(ROWS)).encode() if kind == "json" else gzip.compress(as_rows())
    draft.settings = json.loads(json.dumps(draft.settings).replace("rows.jsonl", f"rows.{kind}"))
    draft.files[f"rows.{kind}"] = content
    return draft


def generate(chance: random.Random) -> Draft:
    draft = Draft("generate", configs.GenerateConfig, settings={"model": MODEL, "decoding": dict(CANVAS)})
    how = chance.choice(("words", "stdin", "infill"))
    draft.words = ["say a", "say b"] if how == "words" else []
    draft.stdin = "say a\nsay b\n" if how == "stdin" else ""
    draft.settings |= {"infill": "the <|mask|><|mask|> mat"} if how == "infill" else {"json": True}
    return draft


def plan(chance: random.Random) -> Draft:
    settings = {"model": chance.choice((MODEL, "model")), "length": 32, "rows": 2, "json": "plan.json"}
    return Draft("plan", configs.PlanConfig, settings=settings, files=model_files())


def inspect(chance: random.Random) -> Draft:
    settings = {"model": MODEL, "data": "rows.jsonl", "json": "seen.json", "html": "seen.html"}
    settings |= {"classes": True} if chance.random() < 0.3 else {}
    return Draft("inspect", configs.InspectConfig, settings=settings, trees={"rows.jsonl": list(ROWS)})


def estimators(chance: random.Random) -> Draft:
    settings = {"model": MODEL, "data": "rows.jsonl", "parts": ["elbo"], "rows": 1, "replicates": 2, "reference": 2}
    return Draft("estimators", configs.EstimatorsConfig, settings=settings, trees={"rows.jsonl": list(ROWS)})


def profile(chance: random.Random) -> Draft:
    return training("profile", configs.ProfileConfig, {"rows.jsonl": list(ROWS)}, data="rows.jsonl", steps=1)


def grade(chance: random.Random) -> Draft:
    rows = [{"question": "1 + 1?", "generations": "#### 2", "ground_truth": "#### 2"}]
    words = [chance.choice(("gsm8k", "math500", "sudoku")), "stored.jsonl"]
    return Draft("grade", configs.GradeConfig, words, {"json": "grades.json"}, trees={"stored.jsonl": rows})


def compare(chance: random.Random) -> Draft:
    trees = {"a.json": json.loads(record()), "b.json": json.loads(record())}
    return Draft("compare", CompareConfig, ["a.json", "b.json"], {"json": True}, trees=trees)


def report(chance: random.Random) -> Draft:
    files: dict[str, bytes | None] = {f"run/{name}": content for name, content in finished_run().items()}
    draft = Draft("report", ReportConfig, ["run", "a.json"], {"output": "page.html"}, files=files)
    draft.trees = {"a.json": json.loads(record())}
    for name in [name for name in files if name.endswith(".json") and "checkpoint" not in name]:
        draft.trees[name] = json.loads(files.pop(name) or b"")
    return draft


def study(chance: random.Random) -> Draft:
    trained = {"model": MODEL, "data": "rows.jsonl", "trainer": dict(ENGINE)}
    tree = {
        "question": "Which is better?",
        "base": {"sft": trained, "eval": {"tasks": "sudoku", "n": 2, "decoding": dict(CANVAS)}},
        "arms": {"sft": {}, "gift": {"sft": {"objective": "gift"}}},
        "axes": {"rate": {"low": {"sft": {"trainer": {"learning_rate": 1e-4}}}}},
        "baseline": "sft",
        "seeds": [0],
    }
    files = {"rows.jsonl": as_rows()}
    return Draft("study", StudyOptions, ["study.yaml"], {"dry_run": True}, trees={"study.yaml": tree}, files=files)


def convert(chance: random.Random) -> Draft:
    settings = {"to_diffusion": "model", "output": "out"}
    return Draft("convert", configs.ConvertConfig, settings=settings, files=causal_files())


def merge(chance: random.Random) -> Draft:
    settings = {"merge": "adapter", "output": "out"}
    files: dict[str, bytes | None] = {f"adapter/{name}": content for name, content in adapter_files().items()}
    return Draft("convert", configs.ConvertConfig, settings=settings, files=files)


DRAFTS: dict[Callable[[random.Random], Draft], int] = {
    sft: 5,
    dpo: 3,
    rl: 3,
    resumed: 2,
    own_task: 2,
    tables: 3,
    evaluation: 4,
    generate: 3,
    plan: 2,
    inspect: 2,
    estimators: 1,
    profile: 1,
    grade: 2,
    compare: 3,
    report: 3,
    study: 3,
    convert: 2,
    merge: 1,
}
"""How often each is taken."""


def as_rows() -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


@cache
def model_files() -> dict[str, bytes | None]:
    """The embedded model as a folder `model`."""
    return {f"model/{path.name}": path.read_bytes() for path in EMBEDDED[MODEL].iterdir() if path.is_file()}


@cache
def causal_files() -> dict[str, bytes | None]:
    """A causal Llama of random weights with the embedded model's tokenizer, as a folder `model`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=262,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        eos_token_id=0,
        bos_token_id=None,
    )
    with tempfile.TemporaryDirectory() as place:
        LlamaForCausalLM(config).save_pretrained(place)
        own = {f"model/{path.name}": path.read_bytes() for path in Path(place).iterdir()}
    return {**{name: content for name, content in model_files().items() if "token" in name}, **own}


@cache
def finished_run() -> dict[str, bytes]:
    """The files of a run of one step that kept its checkpoint."""
    return _made(["sft", *_ONE_STEP, "--trainer.save-steps", "1"])


@cache
def adapter_files() -> dict[str, bytes]:
    return _made(["sft", *_ONE_STEP, "--lora.rank", "2"])


_ONE_STEP = ["--model", MODEL, "--data", "rows.jsonl", "--output-dir", "out", "--max-steps", "1"]
_ONE_STEP += ["--trainer.per-device-train-batch-size", "2", "--trainer.report-to", "none"]


@cache
def record() -> bytes:
    """An evaluation's file."""
    canvas = ["--decoding.max-new-tokens", "8", "--decoding.steps", "2"]
    return _made(["eval", "--model", MODEL, "--tasks", "countdown", "--n", "3", "--json", "out/a.json", *canvas])[
        "a.json"
    ]


def _made(arguments: list[str]) -> dict[str, bytes]:
    """What a command that works leaves in `out`."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        Path("rows.jsonl").write_bytes(as_rows())
        Path("out").mkdir()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main(arguments)
        if code:
            raise RuntimeError(said.getvalue())
        files = [path for path in Path("out").rglob("*") if path.is_file()]
        return {str(path.relative_to("out")): path.read_bytes() for path in files}
