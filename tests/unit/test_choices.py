"""Choices stand once: values with meanings, the same in configs, help, documentation and the code that acts on them."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest

from remask import choices
from remask.choices import Meanings, meanings, refuse_unknown, values
from remask.commands.plan import GPUS
from remask.config import (
    CanvasConfig,
    ChoicesConfig,
    ConvertConfig,
    DecodingConfig,
    DistilConfig,
    DpoConfig,
    EstimatorsConfig,
    EvalConfig,
    GenerateConfig,
    InspectConfig,
    PlanConfig,
    PolicyChoicesConfig,
    PreferenceChoicesConfig,
    RlConfig,
    SftConfig,
)
from remask.config.explained import option_help
from remask.data.canvas import Fill
from remask.diffusion.estimators import ESTIMATORS
from remask.diffusion.importance import TRANSFORMS
from remask.diffusion.objective import Objective
from remask.diffusion.weights import WEIGHTS
from remask.errors import UserError
from remask.preference.loss import PreferenceObjective
from remask.preference.presets import PRESETS as PREFERENCE
from remask.rl.advantage import ADVANTAGES
from remask.rl.policy_loss import PolicyObjective
from remask.rl.presets import ALIASES
from remask.rl.presets import PRESETS as POLICY
from remask.sampling.schedule import Decoding
from remask.sft.presets import PRESETS as TUNING

ROOT = Path(__file__).parents[2]
CHOICES = {
    name: kind
    for name, kind in vars(choices).items()
    if get_origin(kind) is Annotated and isinstance(kind.__metadata__[0], Meanings)
}
ACTED_ON = {
    "TuningName": TUNING,
    "PolicyName": [*POLICY, *ALIASES],
    "PreferenceName": PREFERENCE,
    "TransformName": TRANSFORMS,
    "WeightName": WEIGHTS,
    "LikelihoodName": ESTIMATORS,
    "AdvantageName": ADVANTAGES,
    "GpuName": GPUS,
}
COMMANDS: dict[str, Any] = {
    "sft": SftConfig,
    "rl": RlConfig,
    "dpo": DpoConfig,
    "eval": EvalConfig,
    "generate": GenerateConfig,
    "inspect": InspectConfig,
    "estimators": EstimatorsConfig,
    "convert": ConvertConfig,
    "distil": DistilConfig,
    "plan": PlanConfig,
}


def options(kind: Any, group: str = "") -> list[tuple[str, Any]]:
    """(dotted name, type) of every option."""
    found = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if is_dataclass(hint):
            found += options(hint, f"{group}{name}.")
        elif name in {field.name for field in fields(kind)}:
            found.append((f"{group}{name}", hint))
    return found


def table() -> str:
    """The documentation's list of every option with named values, command by command; what is the same comes once."""
    seen: set[tuple[str, ...]] = set()
    lines = []
    for command, kind in COMMANDS.items():
        rows = []
        for option, hint in options(kind):
            named = meanings(hint)
            if not named or (option, *named) in seen:
                continue
            seen.add((option, *named))
            first, *rest = (f"`{value}` | {meaning} |" for value, meaning in named.items())
            rows += [f"| `{option}` | {first}", *(f"| | {line}" for line in rest)]
        if rows:
            lines += [f"| `remask {command}` | | |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def test_there_are_choices() -> None:
    assert len(CHOICES) > 25


@pytest.mark.parametrize("name", CHOICES)
def test_every_value_has_a_meaning_of_one_line(name: str) -> None:
    kind = CHOICES[name]
    typed = get_args(kind)[0]
    assert get_origin(typed) is Literal or typed is str
    if typed is not str:
        assert get_args(typed) == values(kind)
    assert all(line.strip() == line and line and "\n" not in line for line in meanings(kind).values())


def test_meanings_are_found_in_a_longer_hint() -> None:
    kind = Annotated[Literal["a", "b"], Meanings({"a": "first", "b": "second"})]
    assert meanings(tuple[kind, ...] | None) == {"a": "first", "b": "second"}  # type: ignore[valid-type]
    assert values(kind) == ("a", "b")
    assert meanings(int | None) == {}


@pytest.mark.parametrize("name", ACTED_ON)
def test_what_acts_on_a_choice_knows_its_values(name: str) -> None:
    assert tuple(ACTED_ON[name]) == values(CHOICES[name])


@pytest.mark.parametrize("text", values(choices.FillName))
def test_every_fill_is_read(text: str) -> None:
    assert Fill.parse(text.replace("<n>", "8")).kind == text.partition(":")[0]


def test_no_list_of_values_stands_twice() -> None:
    """A `Literal` of the same values as a choice stands nowhere else in the source."""
    own = {frozenset(values(kind)) for kind in CHOICES.values()}
    twice = [
        path.parent.name
        for path in sorted((ROOT / "src" / "remask").rglob("*.py"))
        for found in re.findall(r"\bLiteral\[([^\]]*)\]", path.read_text())
        if frozenset(re.findall(r'"([^"]*)"', found)) in own
    ]
    assert set(twice) == {"choices"}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: Objective(rate="unifrom"),
            "unknown rate 'unifrom'; the choices are uniform, importance, lift2, lift3",
        ),  # type: ignore[arg-type]
        (lambda: Decoding(cache="all"), "unknown cache 'all'; the choices are none, prefix, dual"),
        (
            lambda: refuse_unknown("level", None, choices.LevelName),
            "unknown level None; the choices are token, .*",
        ),
    ],
)
def test_an_unknown_value_is_told_with_those_there_are(make: Any, said: str, unchecked: None) -> None:
    with pytest.raises(UserError, match=said):
        make()


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (Objective, ChoicesConfig),
        (PolicyObjective, PolicyChoicesConfig),
        (PreferenceObjective, PreferenceChoicesConfig),
        (Decoding, DecodingConfig),
    ],
)
def test_what_a_preset_may_hold_is_what_an_option_may_be(kind: Any, config: Any) -> None:
    hints, set_by = (get_type_hints(one, include_extras=True) for one in (kind, config))
    named = {name: values(hint) for name, hint in hints.items() if meanings(hint)}
    assert named
    assert {name: values(set_by[name]) for name in named} == named


def test_help_gives_the_meaning_of_every_value() -> None:
    text = option_help(CanvasConfig)["over_long"].splitlines()
    assert text == [
        "What to do with a row longer than max_length.",
        *(f"{value}: {line}" for value, line in meanings(choices.OverLong).items()),
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_the_meanings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from remask.cli import main

    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    for option, hint in options(COMMANDS[command]):
        for value, line in meanings(hint).items():
            assert f"{value}: {line}" in shown, option


def test_the_documentation_lists_every_value_with_its_meaning() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    expected = table()
    missing = [line for line in expected.splitlines() if line not in page]
    assert not missing, "docs/configuration.md lacks:\n" + "\n".join(missing)
    assert expected.strip() in page, f"the tables of docs/configuration.md should be:\n{expected}"


@pytest.mark.parametrize("arguments", [["--help"], ["sft", "--help"], ["rl", "--help"], ["sft", "--choices.rate", "x"]])
def test_help_and_mistakes_load_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom remask.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "sys.exit(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
