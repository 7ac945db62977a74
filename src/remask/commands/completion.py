"""`remask completion`: a script that lets the shell complete commands and their options. tyro writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args

import tyro

from remask import config as configs
from remask.commands.compare import CompareConfig
from remask.commands.helptext import with_help
from remask.commands.options import parse, split_words
from remask.commands.report import ReportConfig
from remask.commands.study import StudyOptions
from remask.config.serve import ServeConfig
from remask.errors import UserError

EXAMPLES = """Examples:
  remask completion bash > ~/.local/share/bash-completion/completions/remask
  remask completion zsh > ~/.zfunc/_remask                # with fpath+=~/.zfunc before compinit in ~/.zshrc
  remask completion fish > ~/.config/fish/completions/remask.fish"""

Shell = Literal["bash", "zsh", "fish"]


@dataclass(frozen=True)
class CompletionConfig:
    """Print a script that lets the shell complete Remask's commands and options. New shells read it."""


@dataclass(frozen=True)
class LmEvalConfig:
    """Evaluate with the lm-evaluation-harness, whose options these are."""


OPTIONS: dict[str, type] = {
    "doctor": configs.DoctorConfig,
    "tour": configs.TourConfig,
    "sft": configs.SftConfig,
    "rl": configs.RlConfig,
    "dpo": configs.DpoConfig,
    "eval": configs.EvalConfig,
    "lm-eval": LmEvalConfig,
    "grade": configs.GradeConfig,
    "compare": CompareConfig,
    "generate": configs.GenerateConfig,
    "serve": ServeConfig,
    "inspect": configs.InspectConfig,
    "estimators": configs.EstimatorsConfig,
    "convert": configs.ConvertConfig,
    "distil": configs.DistilConfig,
    "plan": configs.PlanConfig,
    "profile": configs.ProfileConfig,
    "study": StudyOptions,
    "push": configs.PushConfig,
    "report": ReportConfig,
    "completion": CompletionConfig,
}
"""The options of each command. Those of lm-eval are the harness's, and are not completed."""


def run(arguments: Sequence[str]) -> int:
    """Run `remask completion` with these arguments and return the exit code."""
    words, flags = split_words(CompletionConfig, arguments)
    parse(CompletionConfig, flags, command="completion", examples=EXAMPLES, words="bash|zsh|fish")
    if len(words) != 1 or words[0] not in get_args(Shell):
        raise UserError(
            f"expected one shell, got {' '.join(words) or 'none'}", mend="write remask completion bash, or zsh, or fish"
        )
    write(words[0])
    return 0


def write(shell: str) -> None:
    """Print the script for a shell."""
    from remask.cli import COMMANDS

    commands: list[Any] = [
        Annotated[kind, tyro.conf.subcommand(name, default=kind(), description=COMMANDS[name][1])]
        for name, kind in OPTIONS.items()
    ]
    of_one: Any = Union[tuple(commands)]  # noqa: UP007 - the members are computed
    try:
        tyro.cli(
            of_one,
            prog="remask",
            args=["--tyro-write-completion", shell, "-"],
            config=(tyro.conf.AvoidSubcommands,),
            registry=with_help(briefly=True),
        )
    except SystemExit as leave:
        if leave.code not in (0, None):
            raise
