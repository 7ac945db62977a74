"""Classes of tokens: by the unit of text they lie in, for tokenizers of bytes and of words."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from remask.data.token_classes import LEXICAL, POSITIONAL, classes_of, classify, spelled

TEXTS = ["so the total is 3.5 + a3 = 12", "wait, it's × 7\n<answer>(8-1)</answer>", "é well-known don't"]


@pytest.fixture(scope="module")
def words() -> Any:
    """A byte-level BPE whose tokens are whole words with their blanks."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(TEXTS * 9, trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["<|end|>"]))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>")


def by_character(text: str) -> list[tuple[str, ...]]:
    return classify(text, [(i, i + 1) for i in range(len(text))])


def lexical(text: str) -> list[str]:
    """The class of each character that is not a blank."""
    return [names[0] for names, character in zip(by_character(text), text, strict=True) if character != " "]


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("12", ["number"] * 2),
        ("3.5", ["number"] * 3),
        ("3.", ["number", "punctuation"]),
        ("a3=2", ["name", "name", "operator", "number"]),
        ("4x", ["name", "name"]),
        ("(x)", ["punctuation", "word", "punctuation"]),
        ("Thus", ["connective"] * 4),
        ("a", ["function word"]),
        ("it's", ["function word"] * 4),
        ("don’t", ["function word"] * 5),
        ("cat", ["word"] * 3),
        ("re-do", ["word"] * 2 + ["punctuation"] + ["function word"] * 2),
        ("7-1", ["number", "operator", "number"]),
        ("- x", ["punctuation", "word"]),
        ("**x**", ["punctuation"] * 2 + ["word"] + ["punctuation"] * 2),
        ("2**3", ["number", "operator", "operator", "number"]),
        ("<a>", ["tag"] * 3),
        ("x<1", ["word", "operator", "number"]),
        ("\n", ["newline"]),
        ("\0", ["end"]),
        ("数学", ["word"] * 2),
    ],
)
def test_a_character_has_the_class_of_its_unit(text: str, classes: list[str]) -> None:
    assert lexical(text) == classes


def test_a_token_has_the_class_of_its_first_character_that_is_seen() -> None:
    text = "so  42):\n then"
    assert classify(text, [(0, 2), (2, 6), (6, 9), (9, 14)]) == [
        ("connective", "step start"),
        ("number",),
        ("punctuation",),
        ("connective", "step start"),
    ]
    assert classify(text, [(2, 4), (8, 10), (3, 3)]) == [("space",), ("newline",), ("space",)]


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("1\n<answer>2 3</answer>4", "2 3"),
        ("<answer>23", "23"),
        (r"so \boxed{\frac{1}{2}} is", r"\frac{1}{2}"),
        ("x\n#### 42\ny", " 42"),
        ("no answer", ""),
    ],
)
def test_the_answer_is_what_stands_inside_its_marks(text: str, inside: str) -> None:
    found = by_character(text)
    seen = "".join(c for c, names in zip(text, found, strict=True) if "answer" in names)
    assert seen == inside.replace(" ", "")


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("a1=3 b2=4\n<answer>1 2</answer>", [0, 5]),  # a line of equations: each begins a step
        ("8-1=7", [0]),
        ("x = 3 + 4", [0]),  # a piece without an equals sign: the line is one step
        ("First, add.\n\n  Then stop.", [0, 15]),
        ("<reasoning>\nadd\n</reasoning>\n#### 7", [12]),
    ],
)
def test_where_steps_begin(text: str, starts: list[int]) -> None:
    assert [i for i, names in enumerate(by_character(text)) if "step start" in names] == starts


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_and_words_are_classed_alike(text: str, tokenizer: Any, words: Any) -> None:
    found = {}
    for name, each in (("bytes", tokenizer), ("words", words)):
        ids = each.encode(text, add_special_tokens=False)
        spelt, spans = spelled(each, ids)
        assert spelt == text
        assert len(spans) == len(ids)
        assert {i for span in spans for i in range(*span)} == set(range(len(text)))
        found[name] = {i: names[0] for (i, _), names in zip(spans, classes_of(each, ids), strict=True)}
    assert len(found["words"]) < len(found["bytes"])
    for (start, end), (kind, *_) in zip(spans, classes_of(words, ids), strict=True):
        seen = [found["bytes"][i] for i in range(start, end) if not text[i].isspace()]
        assert not seen or seen[0] == kind


def test_bytes_of_one_character_stand_together_and_one_of_them_begins_a_step(tokenizer: Any) -> None:
    ids = tokenizer.encode("×2", add_special_tokens=False)
    assert spelled(tokenizer, ids) == ("×2", [(0, 1), (0, 1), (1, 2)])
    assert classes_of(tokenizer, ids) == [("operator", "step start"), ("operator",), ("number",)]
    assert spelled(tokenizer, ids[:1])[1] == [(0, 1)]  # half a character at the end is one of its own


def test_special_tokens_end_words_and_fill_is_its_own_class(tokenizer: Any) -> None:
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    digit = tokenizer.encode("1", add_special_tokens=False)
    assert [names[0] for names in classes_of(tokenizer, [*digit, end, *digit], fill=2)] == [
        "number",
        "end",
        "number",
        "fill",
        "fill",
    ]


def test_every_token_has_one_lexical_class(tokenizer: Any) -> None:
    ids = tokenizer.encode("".join(map(chr, range(1, 600))), add_special_tokens=False)
    for first, *others in classes_of(tokenizer, ids):
        assert first in LEXICAL
        assert set(others) <= set(POSITIONAL)
