"""British and American spellings of options and values are both read; what is written is one of them."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from test_choices import CHOICES, COMMANDS, options

from remask.choices import values
from remask.commands.options import parse, split_words
from remask.config import DpoConfig, GenerateConfig, RlConfig, SftConfig, StudyConfig, dump, from_dict, load
from remask.config.spelling import british, canonical
from remask.errors import UserError
from remask.study.grid import cells


def flags(kind: Any, *arguments: str) -> Any:
    return parse(kind, arguments, command="x", examples="")


@pytest.mark.parametrize(
    ("american", "spelled"),
    [
        ("normalizer", "normaliser"),
        ("length_normalized", "length_normalised"),
        ("optimizer", "optimiser"),
        ("quantization", "quantisation"),
        ("initialize", "initialise"),
        ("analyzer", "analyser"),
        ("color", "colour"),
        ("behavior", "behaviour"),
        ("neighbors", "neighbours"),
        ("favorite", "favourite"),
        ("flavor", "flavour"),
        ("center", "centre"),
        ("modeling", "modelling"),
        ("labeled", "labelled"),
        ("canceled", "cancelled"),
        ("channeled", "channelled"),
        ("dialog", "dialogue"),
        ("catalog", "catalogue"),
        ("license", "licence"),
        ("gray", "grey"),
    ],
)
def test_both_spellings_are_one_word(american: str, spelled: str) -> None:
    assert british(american) == british(spelled) == spelled
    assert canonical(american, ["seed", spelled]) == spelled
    assert canonical(spelled, [american, "seed"]) == american


@pytest.mark.parametrize(
    "word", ["size", "batch_size", "seize", "label_smoothing", "model", "parameter", "order", "log", "labels", "levels"]
)
def test_other_words_stay(word: str) -> None:
    assert british(word) == word


def test_a_name_that_is_there_is_never_taken_for_another() -> None:
    assert canonical("color", ["colour", "color"]) == "color"
    assert canonical("colr", ["colour"]) == "colr"


@pytest.mark.parametrize("command", COMMANDS)
def test_no_two_options_of_a_command_are_spellings_of_one(command: str) -> None:
    names = [name for name, _ in options(COMMANDS[command])]
    assert [pair for pair in combinations(names, 2) if british(pair[0]) == british(pair[1])] == []


@pytest.mark.parametrize("name", CHOICES)
def test_no_two_values_of_a_choice_are_spellings_of_one(name: str) -> None:
    assert len({british(value) for value in values(CHOICES[name])}) == len(values(CHOICES[name]))


@pytest.mark.parametrize("spelled", ["normaliser", "normalizer"])
def test_yaml_reads_both_and_writes_one(spelled: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"quantisation: 8bit\nchoices: {{{spelled}: masked}}\n")
    config = load(SftConfig, path)
    assert (config.choices.normaliser, config.quantization) == ("masked", "8bit")
    written = yaml.safe_load(dump(config))
    assert written["choices"]["normaliser"] == "masked"
    assert "quantisation" not in written
    assert not any("normalizer" in key for key in written["choices"])
    assert dump(from_dict(SftConfig, written, where="x")) == dump(config)


@pytest.mark.parametrize("value", ["normalised", "normalized"])
def test_values_are_read_in_both_spellings(value: str) -> None:
    assert from_dict(RlConfig, {"choices": {"advantage": value}}, where="x").choices.advantage == "normalised"
    assert flags(RlConfig, "--choices.advantage", value).choices.advantage == "normalised"
    assert flags(RlConfig, f"--choices.advantage={value}", "--seed", "1").choices.advantage == "normalised"


@pytest.mark.parametrize("flag", ["--choices.normalizer", "--choices.normaliser"])
def test_the_command_line_reads_both(flag: str, tmp_path: Path) -> None:
    assert flags(RlConfig, flag, "tokens").choices.normaliser == "tokens"
    assert flags(RlConfig, f"{flag}=tokens").choices.normaliser == "tokens"
    path = tmp_path / "config.yaml"
    path.write_text("choices: {normalizer: groups}\n")
    assert flags(RlConfig, "--config", str(path), flag, "tokens").choices.normaliser == "tokens"
    assert flags(RlConfig, "--config", str(path)).choices.normaliser == "groups"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--choices.length-normalized"], True),
        (["--choices.length_normalized", "false"], False),
        (["--no-choices.length-normalized"], False),
        (["--choices.length-normalised=yes"], True),
    ],
)
def test_switches_are_read_in_both(arguments: list[str], expected: bool) -> None:
    assert flags(DpoConfig, *arguments).choices.length_normalised is expected


@pytest.mark.parametrize(
    "arguments",
    [
        ["--choices.normaliser", "tokens", "--choices.normalizer", "groups"],
        ["--choices.normalizer=tokens", "--seed", "1", "--choices.normaliser=tokens"],
    ],
)
def test_both_at_once_are_one_error_on_the_command_line(arguments: list[str]) -> None:
    with pytest.raises(UserError, match=r"--choices\.normali.er and --choices\.normali.er are two spellings of one"):
        flags(RlConfig, *arguments)


def test_dashes_and_underlines_are_no_two_spellings() -> None:
    assert flags(SftConfig, "--max-steps", "1", "--max_steps", "2").max_steps == 2


def test_both_at_once_are_one_error_in_yaml() -> None:
    given = {"choices": {"normaliser": "tokens", "normalizer": "groups"}, "sed": 1}
    with pytest.raises(UserError) as caught:
        from_dict(RlConfig, given, where="run.yaml")
    said = str(caught.value)
    assert said.startswith(
        "run.yaml: choices.normaliser and choices.normalizer are two spellings of one option: give one of them; "
    )
    assert "unknown key 'sed'" in said
    assert said.count("two spellings") == 1


def test_words_and_values_of_free_text_are_left_alone() -> None:
    words, rest = split_words(GenerateConfig, ["--decoding.reveal", "margin", "normalize this", "normalized"])
    assert words == ["normalize this", "normalized"]
    assert flags(GenerateConfig, *rest).decoding.reveal == "margin"
    assert flags(SftConfig, "--data", "normalized").data == "normalized"
    assert from_dict(SftConfig, {"trainer": {"extra": {"color": 1}}}, where="x").trainer.extra == {"color": 1}


def test_a_study_overrides_a_key_however_it_is_spelled() -> None:
    study = StudyConfig(
        question="?",
        base={"sft": {"choices": {"normaliser": "masked"}}, "eval": {"tasks": "sudoku", "n": 8}},
        arms={"one": {}, "other": {"sft": {"choices": {"normalizer": "response"}}}},
        baseline="one",
        seeds=(0,),
    )
    found = {cell.arm: cell.training[0].config["choices"] for cell in cells(study, "study") if cell.training}
    assert found == {"one": {"normaliser": "masked"}, "other": {"normaliser": "response"}}
    both = {"sft": {"choices": {"normalizer": "response", "normaliser": "masked"}}}
    with pytest.raises(UserError, match=r"study, sft: .* two spellings of one option"):
        cells(StudyConfig(question="?", base=study.base, arms={"one": both}, baseline="one"), "study")


def test_every_option_is_found_by_its_own_name() -> None:
    for kind in COMMANDS.values():
        for name, hint in get_type_hints(kind, include_extras=True).items():
            assert canonical(name, get_type_hints(kind)) == name, hint
