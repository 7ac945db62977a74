"""The command line: one thin function per command. Help loads no torch."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from remask import __version__
from remask.errors import one_line, shortened
from remask.faults import refuse_lost_folder, what_went_wrong
from remask.streams import drop_output, flush, prepare_streams, quiet_libraries, say

COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("remask.commands.doctor", "what is installed and works, and what to do about what is missing"),
    "tour": ("remask.commands.tour", "fine-tune the tiny model with two methods, evaluate, compare, report"),
    "sft": ("remask.commands.sft", "supervised fine-tuning with any objective"),
    "rl": ("remask.commands.rl", "reinforcement learning with verifiable rewards: ESPO and its relatives"),
    "dpo": ("remask.commands.dpo", "preference optimisation on pairs: DPO, with VRPO's variance reductions"),
    "eval": ("remask.commands.evaluate", "evaluate a model on tasks"),
    "lm-eval": ("remask.commands.lm_eval", "evaluate with the lm-evaluation-harness"),
    "grade": ("remask.commands.grade", "grade stored answers again, by the published rules"),
    "compare": ("remask.commands.compare", "compare two evaluations, with intervals"),
    "generate": ("remask.commands.generate", "answer prompts; watch the canvas being unmasked"),
    "serve": ("remask.commands.serve", "an OpenAI-compatible server, and a page that shows the canvas being written"),
    "inspect": ("remask.commands.inspect", "per-token entropy, importance and masking rate of examples"),
    "estimators": ("remask.commands.estimators", "bias, variance and cost of ELBO estimators and of SFT gradients"),
    "convert": ("remask.commands.convert", "a causal model into a diffusion model, an adapter into its base"),
    "push": ("remask.commands.push", "publish a run's model, on the hub or in a folder, with a card of its record"),
    "distil": ("remask.commands.distil", "a causal model's answers, as rows to train its diffusion model on"),
    "plan": ("remask.commands.plan", "memory, arithmetic and time of a training step, before it is run"),
    "profile": ("remask.commands.profile", "where the time and the memory of a fine-tuning step go"),
    "study": ("remask.commands.study", "a grid of trainings and evaluations, with tables and figures"),
    "report": ("remask.commands.report", "one HTML page of runs and evaluations"),
    "completion": ("remask.commands.completion", "a script that lets the shell complete commands and options"),
}

EXAMPLES = """examples:
  remask doctor
  remask tour
  remask sft --objective gift --data my.jsonl --output-dir runs/gift
  remask sft --config recipes/tiny/gift.yaml --trainer.learning_rate 1e-4 --output-dir runs/x
  remask sft --config runs/x/config.yaml --resume auto
  remask rl --model runs/gift --tasks sudoku --objective espo --output-dir runs/espo
  remask dpo --model runs/gift --data pairs.jsonl --output-dir runs/vrpo
  remask eval --model runs/x --tasks sudoku,countdown --json x.json
  remask grade gsm8k generations.jsonl
  remask compare sft.json x.json
  remask generate --model runs/x "countdown 4 5 9 -> 9"
  remask serve --model runs/gift
  remask push runs/gift --to me/gift --dry-run
  remask estimators --model runs/gift --data my.jsonl
  remask plan --model llada-8b --gpus 8 --length 4096 --strategy fsdp
  remask profile --config recipes/tiny/gift.yaml --steps 8
  remask study recipes/studies/gift_vs_sft.yaml --processes 2
  remask report runs/*"""


def usage() -> str:
    """Return the text that lists the commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return (
        "usage: remask COMMAND [OPTIONS]\n\n"
        "Post-training for diffusion language models.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\n`remask COMMAND --help` lists a command's options.\n\n" + EXAMPLES
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 on success, 2 on a user's mistake or where the machine fails (one line
    on stderr), 128 + n when signal n stopped it. A mistake of this program keeps its traceback; with REMASK_TRACEBACK=1
    all have one.
    """
    prepare_streams()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version", "version"):
        print(f"remask {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        say(f"remask: unknown command {shortened(arguments[0])!r}. The commands are {', '.join(COMMANDS)}")
        return 2
    if not any("quantization" in argument for argument in arguments):
        quiet_libraries()
    try:
        refuse_lost_folder()
        run: Callable[[list[str]], int] = importlib.import_module(COMMANDS[arguments[0]][0]).run
        code = run(arguments[1:])
        flush()
        return code
    except KeyboardInterrupt:
        say(f"remask {arguments[0]}: interrupted")
        return 130
    except BrokenPipeError:
        drop_output()
        return 1
    except Exception as error:
        said = what_went_wrong(error)
        if said is None:
            raise
        if os.environ.get("REMASK_TRACEBACK") == "1":
            traceback.print_exception(error)
        say(one_line(f"remask {arguments[0]}: {said}"))
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
