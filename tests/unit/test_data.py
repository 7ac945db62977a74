"""Rows from files, chat templates, canvases, batches: every column format, every mistake, every length."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

from remask.data.canvas import Fill, Row, build_rows
from remask.data.chat import decode_text, encode, encode_prompt
from remask.data.collate import Collator, RowDataset, Visit, VisitSampler, by_length
from remask.data.named import Source
from remask.data.sources import Example, load_examples
from remask.diffusion.corruption import Canvas
from remask.diffusion.noise import Noise, row_noise
from remask.errors import UserError

USER = ({"role": "user", "content": "1+1?"},)
SYSTEM = {"role": "system", "content": "Be brief."}
GOOD = {"prompt": "1+1?", "completion": "2"}


def write_lines(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# ---- columns --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "messages", "completion"),
    [
        (GOOD, USER, "2"),
        ({"prompt": [SYSTEM, *USER], "completion": [{"role": "assistant", "content": "2"}]}, (SYSTEM, *USER), "2"),
        ({"messages": [*USER, {"role": "assistant", "content": "2"}]}, USER, "2"),
        (
            {
                "messages": [
                    SYSTEM,
                    *USER,
                    {"role": "assistant", "content": "3"},
                    *USER,
                    {"role": "assistant", "content": "2"},
                ]
            },
            (SYSTEM, *USER, {"role": "assistant", "content": "3"}, *USER),
            "2",
        ),
        ({"question": "1+1?", "answer": "2", "level": 1}, USER, "2"),
        (
            {"question": "1+1?", "thinking_trajectories": ["one", "two"], "attempt": "2", "answer": "not this"},
            USER,
            "<reasoning>\none\ntwo\n</reasoning>\n<answer>\n2\n</answer>",
        ),
        (
            {
                "question": "1+1?",
                "deepseek_thinking_trajectory": "deep",
                "deepseek_attempt": "2",
                "gemini_attempt": "3",
            },
            USER,
            "<reasoning>\ndeep\n</reasoning>\n<answer>\n2\n</answer>",
        ),
        (
            {"question": "1+1?", "gemini_thinking_trajectory": "gem", "gemini_attempt": "2"},
            USER,
            "<reasoning>\ngem\n</reasoning>\n<answer>\n2\n</answer>",
        ),
        ({"messages": None, "prompt": "1+1?", "completion": "2"}, USER, "2"),
    ],
)
def test_every_format_of_columns(row: dict[str, Any], messages: Any, completion: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path, row)
    (example,) = load_examples(str(path)).examples
    assert example == Example(messages, completion, f"{path}, line 1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "mapping of columns"),
        ({"prompt": "1+1?"}, "no columns Remask knows among prompt"),
        ({}, "no columns Remask knows among none"),
        ({"prompt": "1+1?", "completion": None}, "completion is null"),
        ({"prompt": "1+1?", "completion": "  "}, "the answer is empty"),
        ({"prompt": "1+1?", "completion": 2}, "completion is a number, not text"),
        ({"prompt": 1, "completion": "2"}, "prompt is neither text nor a list"),
        ({"prompt": [], "completion": "2"}, "no prompt"),
        ({"messages": [*USER]}, "the last one is of role user.*no answer"),
        ({"messages": []}, "no answer"),
        ({"messages": [{"role": "assistant", "content": "2"}]}, "no prompt"),
        ({"messages": [{"role": "robot", "content": "2"}]}, "unknown role 'robot'"),
        ({"messages": [{"role": "user"}]}, "message 1 has no content"),
        ({"prompt": "1", "completion": [*USER]}, "not one assistant's turn"),
        ({"question": ["q"], "answer": "a"}, "question is a list"),
        ({"question": "q", "thinking_trajectories": [1], "attempt": "2"}, "thinking_trajectories is a number"),
    ],
)
def test_a_bad_row_is_an_error_with_its_line_or_is_listed(row: Any, message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path, GOOD, "", row, GOOD)
    with pytest.raises(UserError, match=message) as caught:
        load_examples(str(path))
    assert f"{path}, line 3" in str(caught.value)
    loaded = load_examples(str(path), on_bad_row="skip")
    assert [example.where for example in loaded.examples] == [f"{path}, line 1", f"{path}, line 4"]
    assert loaded.skipped == [str(caught.value)]


def test_line_separators_inside_a_text_do_not_end_its_line(tmp_path: Path) -> None:
    """JSON allows U+2028, U+2029 and U+0085 unescaped in strings, and data sets hold them."""
    path = write_lines(tmp_path, {"prompt": "a\u2028b", "completion": "c\x85d\u2029e"}, GOOD)
    first, second = load_examples(str(path)).examples
    assert first.messages[0]["content"] == "a\u2028b"
    assert first.completion == "c\x85d\u2029e"
    assert second.where == f"{path}, line 2"


def test_a_json_list_is_counted_in_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([GOOD, {"prompt": "x"}]))
    with pytest.raises(UserError, match=r"rows\.json, row 2: no columns"):
        load_examples(str(path))
    assert len(load_examples(str(path), on_bad_row="skip").examples) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b"", "no usable rows"),
        ("rows.jsonl", b"\n\n", "no usable rows"),
        ("rows.jsonl", b"\xff\xfe", "UTF-8"),
        ("rows.json", b"{}", "is a list"),
        ("rows.json", b"[1", "not JSON"),
        ("rows.parquet", b"not parquet", "Parquet"),
        ("rows.txt", b"a,b", "unknown kind of file"),
        ("rows.jsonl.gz", b"not gzip", "not readable"),
    ],
)
def test_an_unusable_file_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_examples(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["none.jsonl", "none.json", "none.parquet"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{name}: no such file"):
        load_examples(str(tmp_path / name))


def test_only_bad_rows_leave_nothing_even_when_skipped(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no usable rows"):
        load_examples(str(write_lines(tmp_path, {"prompt": "x"})), on_bad_row="skip")


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows = [{"messages": [*USER, {"role": "assistant", "content": "2"}]}, {"messages": [*USER]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    loaded = load_examples(str(path), on_bad_row="skip")
    assert loaded.examples == [Example(USER, "2", f"{path}, row 1")]
    assert len(loaded.skipped) == 1
    assert "row 2" in loaded.skipped[0]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_folder_in_the_hubs_layout(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    if kind == "parquet":
        (folder / "data").mkdir()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD]), folder / "data" / "train-00000.parquet")
    else:
        write_lines(folder, GOOD, name="train.jsonl")
    assert load_examples(str(folder)).examples == [Example(USER, "2", f"{folder}@train, row 1")]


def test_what_is_neither_file_nor_data_set_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="neither a file nor a data set") as caught:
        load_examples(str(empty))
    assert str(empty) in str(caught.value)


@pytest.mark.shared
def test_published_reasoning_rows(shared: Path, tokenizer: Any) -> None:
    path = shared / "data" / "s1k" / "five_rows_with_reasoning.parquet"
    table = pyarrow.parquet.read_table(path).to_pylist()
    examples = load_examples(str(path)).examples
    assert len(examples) == 5
    for example, row in zip(examples, table, strict=True):
        assert example.messages == ({"role": "user", "content": row["question"]},)
        assert example.completion.startswith("<reasoning>\n")
        assert example.completion.endswith("\n</answer>")
        encoded = encode(tokenizer, example.messages, example.completion, where=example.where)
        assert tokenizer.decode(encoded.response) == example.completion + "<|end|>"


# ---- chat -----------------------------------------------------------------------------------------------------


def test_the_response_starts_right_after_the_header(tokenizer: Any) -> None:
    encoded = encode(tokenizer, [SYSTEM, *USER], "two", where="here")
    assert tokenizer.decode(encoded.prompt) == "<|system|>Be brief.<|end|><|user|>1+1?<|end|><|assistant|>"
    assert tokenizer.decode(encoded.response) == "two<|end|>"
    assert encoded.prompt == encode_prompt(tokenizer, [SYSTEM, *USER])
    assert encoded.prompt[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert len(encoded.response) == 4


@pytest.mark.parametrize("text", ["2", " two\n", "Größe 漢字 🙂", "a\u2028b\x00"])
def test_a_response_decodes_to_its_text(text: str, tokenizer: Any) -> None:
    encoded = encode(tokenizer, USER, text, where="here")
    stop = tokenizer.convert_tokens_to_ids("<|end|>")
    assert encoded.response[-1] == stop
    assert decode_text(tokenizer, encoded.response + [tokenizer.eos_token_id] * 3, [stop]) == text


def test_text_ends_at_the_first_stop_token(tokenizer: Any) -> None:
    ids = [*tokenizer.encode("ab"), tokenizer.eos_token_id, *tokenizer.encode("cd")]
    assert decode_text(tokenizer, ids, [tokenizer.eos_token_id]) == "ab"
    assert decode_text(tokenizer, [tokenizer.eos_token_id], [tokenizer.eos_token_id]) == ""


def test_without_a_template_turns_are_lines_and_eos_ends(pretrain_tiny: Any) -> None:
    plain = pretrain_tiny.build_tokenizer()
    plain.chat_template = None
    encoded = encode(plain, [SYSTEM, *USER], "2", where="here")
    assert plain.decode(encoded.prompt) == "Be brief.\n1+1?\n"
    assert encoded.response == [*plain.encode("2"), plain.eos_token_id]


def test_a_template_that_rewrites_the_prompt_is_refused(pretrain_tiny: Any) -> None:
    odd = pretrain_tiny.build_tokenizer()
    odd.chat_template = "{{ messages | length }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="line 7: the chat template changes the prompt"):
        encode(odd, USER, "2", where="line 7")


# ---- canvas ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fill"),
    [("batch", Fill("batch")), ("max", Fill("max")), ("none", Fill("none")), ("multiple:32", Fill("multiple", 32))],
)
def test_fills(text: str, fill: Fill) -> None:
    assert Fill.parse(text) == fill


@pytest.mark.parametrize(
    "text", ["", "all", "multiple", "multiple:", "multiple:0", "multiple:-3", "multiple:²", "batch:2", "None"]
)
def test_unknown_fills_name_the_choices(text: str) -> None:
    with pytest.raises(UserError, match=r"batch, multiple:<n>, block:<n>, max, none"):
        Fill.parse(text)


@pytest.mark.parametrize(
    ("fill", "length"),
    [("none", 5), ("batch", 17), ("max", 97), ("multiple:4", 8), ("multiple:5", 5), ("multiple:200", 97)],
)
def test_fill_lengths_by_hand(fill: str, length: int) -> None:
    """A prompt of 3 and a response of 5, in a batch whose longest row has 20 tokens, on canvases of 100."""
    assert Fill.parse(fill).length(3, 5, longest_row=20, max_length=100) == length


def build(
    tokenizer: Any, *completions: str, max_length: int, over_long: str = "error", on_bad_row: str = "error"
) -> Any:
    examples = [Example(USER, completion, f"line {number}") for number, completion in enumerate(completions, 1)]
    return build_rows(examples, tokenizer, max_length=max_length, over_long=over_long, on_bad_row=on_bad_row)


# The prompt of USER is <|user|>1+1?<|end|><|assistant|>: 7 tokens; an answer of n letters takes n + 1.
def test_rows_by_hand(tokenizer: Any) -> None:
    built = build(tokenizer, "ab", "abcd", max_length=12)
    assert [(len(row.prompt), len(row.response), len(row), row.where) for row in built.rows] == [
        (7, 3, 10, "line 1"),
        (7, 5, 12, "line 2"),
    ]
    assert (built.truncated, built.dropped, built.skipped) == (0, 0, [])


def test_over_long_rows_are_an_error_that_says_how_to_mend_it(tokenizer: Any) -> None:
    with pytest.raises(
        UserError, match=r"line 2: the row takes 12 tokens, the canvas holds 11.*raise canvas\.max_length"
    ):
        build(tokenizer, "ab", "abcd", max_length=11)


def test_over_long_rows_are_truncated_and_counted(tokenizer: Any) -> None:
    built = build(tokenizer, "ab", "abcd", "abcdefgh", max_length=11, over_long="truncate")
    assert (len(built.rows), built.truncated, built.dropped) == (3, 2, 0)
    assert [tokenizer.decode(row.response) for row in built.rows] == ["ab<|end|>", "abcd", "abcd"]
    assert all(len(row.prompt) == 7 for row in built.rows)


def test_over_long_rows_are_dropped_and_counted(tokenizer: Any) -> None:
    built = build(tokenizer, "ab", "abcd", "abcdefgh", max_length=11, over_long="drop")
    assert (len(built.rows), built.truncated, built.dropped) == (1, 0, 2)


def test_over_long_rows_are_skipped_and_listed(tokenizer: Any) -> None:
    built = build(tokenizer, "ab", "abcd", max_length=11, on_bad_row="skip")
    assert len(built.rows) == 1
    assert len(built.skipped) == 1
    assert "line 2" in built.skipped[0]


@pytest.mark.parametrize("over_long", ["truncate", "error"])
@pytest.mark.parametrize("max_length", [6, 7])
def test_a_prompt_that_fills_the_canvas_is_a_bad_row(max_length: int, over_long: str, tokenizer: Any) -> None:
    with pytest.raises(UserError, match=f"line 1: the prompt takes 7 tokens of a canvas of {max_length}"):
        build(tokenizer, "ab", max_length=max_length, over_long=over_long)


def test_a_row_whose_prompt_fills_the_canvas_is_dropped_as_any_that_is_too_long(tokenizer: Any) -> None:
    messages = [({"role": "user", "content": text},) for text in ("abcdefgh" * 3, "ab")]
    examples = [Example(turns, "a", f"line {n}") for n, turns in enumerate(messages)]
    built = build_rows(examples, tokenizer, max_length=12, over_long="drop")
    assert (len(built.rows), built.dropped, built.skipped) == (1, 1, [])


@pytest.mark.parametrize(("prompt", "answer", "part"), [("q", "x#y", "answer"), ("q#", "x", "prompt")])
def test_a_mask_that_a_text_cannot_avoid_is_a_bad_row(prompt: str, answer: str, part: str, tokenizer: Any) -> None:
    """Of a checkpoint whose mask is an ordinary token: nothing would tell it from a token that is hidden."""
    bad = Example(({"role": "user", "content": prompt},), answer, "line 1")
    good = Example(({"role": "user", "content": "q"},), "x", "line 2")
    (mask,) = tokenizer.encode("#")
    settings: Any = {"max_length": 99, "over_long": "error", "mask_id": mask}
    with pytest.raises(UserError, match=f"line 1: the {part} contains the mask token '#'"):
        build_rows([bad, good], tokenizer, **settings)
    built = build_rows([bad, good], tokenizer, **settings, on_bad_row="skip")
    assert (len(built.rows), len(built.skipped)) == (1, 1)


def test_no_rows_left_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"none of \d+ rows can be used"):
        build(tokenizer, "abcdefgh", max_length=9, over_long="drop")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """Spreadsheets write one."""
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbfprompt,completion\r\nq,a\r\n")
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "q", "completion": "a"}\n')
    for name in ("rows.csv", "rows.jsonl"):
        assert load_examples(str(tmp_path / name)).examples[0].completion == "a"


def test_a_csv_with_a_long_field(tmp_path: Path) -> None:
    """Python's reader stops at 131,072 characters unless told otherwise."""
    usual = csv.field_size_limit()
    (tmp_path / "rows.csv").write_text(f'prompt,completion\nq,"{"a" * 200_000}"\n')
    assert len(load_examples(str(tmp_path / "rows.csv")).examples[0].completion) == 200_000
    assert csv.field_size_limit() == usual


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"prompt": "q", "completion": "a"}\n' * 50)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:12] + b"\xff" * 8 + whole[20:])
    (tmp_path / "b.json").write_text("[" * 100_000)
    (tmp_path / "c.jsonl").write_text("[" * 100_000)
    for name in ("a.jsonl.gz", "b.json", "c.jsonl"):
        with pytest.raises(UserError, match=name):
            load_examples(str(tmp_path / name))


# ---- named sources and samples --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "rows", "seed"),
    [
        ("s1k", "simplescaling/s1K@train", None, 0),
        ("s1k-1.1:500", "simplescaling/s1K-1.1@train", 500, 0),
        ("open-r1:3000:7", "open-r1/Mixture-of-Thoughts:all@train", 3000, 7),
        ("gsm8k@test", "openai/gsm8k:main@test", None, 0),
        ("owner/name", "owner/name", None, 0),
        ("owner/name:math@train:30", "owner/name:math@train", 30, 0),
        ("missing.jsonl:5", "missing.jsonl", 5, 0),
    ],
)
def test_where_a_source_is(text: str, place: str, rows: int | None, seed: int) -> None:
    assert Source.parse(text) == Source(place, rows, seed)


def test_a_sample_of_a_local_copy(tmp_path: Path) -> None:
    rows = [{"problem": f"{i}?", "solution": f"{i}!"} for i in range(20)]
    path = write_lines(tmp_path, *rows)
    every = load_examples(f"math={path}").examples
    assert [example.completion for example in every] == [f"{i}!" for i in range(20)]
    drawn = [example.completion for example in load_examples(f"math={path}:5").examples]
    assert len(drawn) == len(set(drawn)) == 5
    assert drawn == sorted(drawn, key=lambda text: int(text[:-1]))
    assert drawn == [example.completion for example in load_examples(f"{path}:5").examples]
    assert drawn != [example.completion for example in load_examples(f"{path}:5:1").examples]
    assert "line" in load_examples(f"{path}:5").examples[0].where


def test_a_local_copy_with_several_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GSM8K on the hub has two; a folder that was downloaded whole has them too."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "gsm8k"
    card = "---\nconfigs:\n"
    for config in ("socratic", "main"):
        (folder / config).mkdir(parents=True)
        card += f"- config_name: {config}\n  data_files:\n"
        for split in ("train", "test"):
            file = f"{config}/{split}-00000-of-00001.parquet"
            table = pyarrow.Table.from_pylist([{"question": f"{config} {split}?", "answer": "#### 3"}])
            pyarrow.parquet.write_table(table, folder / file)
            card += f"  - split: {split}\n    path: {file}\n"
    (folder / "README.md").write_text(card + "---\n")
    (example,) = load_examples(f"gsm8k={folder}").examples
    assert example.messages[0]["content"] == "main train?"
    (other,) = load_examples(f"{folder}:socratic@test").examples
    assert other.messages[0]["content"] == "socratic test?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x.jsonl:0", "asks for no rows"),
        ("s1k=", "no such file"),
        ("s1k=nowhere.parquet", r"nowhere\.parquet: no such file"),
        ("", "no source"),
    ],
)
def test_a_source_that_makes_no_sense(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_examples(text)


def test_more_rows_than_there_are(tmp_path: Path) -> None:
    path = write_lines(tmp_path, GOOD)
    with pytest.raises(UserError, match="has 1 rows, 2 were asked for"):
        load_examples(f"{path}:2")


# ---- batches --------------------------------------------------------------------------------------------------

ROWS = [Row([1, 2], [3, 4, 5], "a"), Row([6, 7, 8, 9], [10], "b")]
EOS = 99


def collate(fill: str, rows: list[Row] = ROWS, max_length: int = 8) -> dict[str, torch.Tensor]:
    dataset = RowDataset(rows)
    return Collator(Fill.parse(fill), EOS, max_length, seed=5)([dataset[Visit(i, 2, 10 + i)] for i in range(len(rows))])


@pytest.mark.parametrize(
    ("fill", "ids", "canvases"),
    [
        ("none", [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], (3, 1)),
        ("batch", [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], (3, 1)),
        ("multiple:2", [[1, 2, 3, 4, 5, EOS], [6, 7, 8, 9, 10, EOS]], (4, 2)),
        ("multiple:4", [[1, 2, 3, 4, 5, EOS, EOS, EOS], [6, 7, 8, 9, 10, EOS, EOS, EOS]], (4, 4)),
        ("max", [[1, 2, 3, 4, 5, EOS, EOS, EOS], [6, 7, 8, 9, 10, EOS, EOS, EOS]], (6, 4)),
    ],
)
def test_three_facts_by_hand(fill: str, ids: list[list[int]], canvases: tuple[int, int]) -> None:
    """The response starts right after the prompt and holds its fill; what is past it is none of the three."""
    batch = collate(fill)
    assert batch["ids"].tolist() == ids
    for row, (start, canvas) in enumerate(zip((2, 4), canvases, strict=True)):
        places = range(len(ids[0]))
        assert batch["attended"][row].tolist() == [place < start + canvas for place in places]
        assert batch["corruptible"][row].tolist() == [start <= place < start + canvas for place in places]
        assert batch["supervised"][row].tolist() == batch["corruptible"][row].tolist()
    assert batch["index"].tolist() == [0, 1]


def test_batch_fill_reaches_the_longest_row_and_none_pads() -> None:
    rows = [Row([1], [2], "a"), Row([3, 4], [5, 6, 7], "b")]
    filled, padded = collate("batch", rows), collate("none", rows)
    assert filled["ids"].tolist() == padded["ids"].tolist() == [[1, 2, EOS, EOS, EOS], [3, 4, 5, 6, 7]]
    assert filled["corruptible"][0].tolist() == filled["supervised"][0].tolist() == [False, True, True, True, True]
    assert filled["attended"][0].all()
    assert padded["corruptible"][0].tolist() == [False, True, False, False, False]
    assert padded["attended"][0].tolist() == [True, True, False, False, False]


def test_a_batch_carries_the_noise_of_its_visits() -> None:
    batch = collate("none")
    noise, canvas = Noise.of(batch), Canvas.of(batch)
    for row, length in ((0, 3), (1, 1)):
        own = row_noise(5, 2, row, 10 + row, length)
        assert noise.row_tau[row].item() == pytest.approx(own.tau)
        assert noise.u[row][canvas.corruptible[row]].tolist() == own.u.tolist()
        assert noise.v[row][canvas.corruptible[row]].tolist() == own.v.tolist()
        assert (noise.u[row][~canvas.corruptible[row]] == 1).all()


def test_batch_mates_change_no_row() -> None:
    """A row in a longer batch has the same numbers first: only its fill is longer."""
    dataset = RowDataset([*ROWS, Row([1], list(range(20, 36)), "long")])
    collator = Collator(Fill("batch"), EOS, 64, seed=5)
    alone = collator([dataset[Visit(0, 0, 0)]])
    beside = collator([dataset[Visit(2, 0, 1)], dataset[Visit(0, 0, 0)]])
    assert torch.equal(alone["ids"][0], beside["ids"][1, :5])
    assert torch.equal(alone["u"][0], beside["u"][1, :5])
    assert torch.equal(alone["tau"][0], beside["tau"][1, :5])
    assert beside["corruptible"][1, 5:].all()


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[Visit]:
        sampler = VisitSampler(20, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    first = order(0, 0)
    torch.manual_seed(123)
    assert order(0, 0) == first
    assert sorted(visit.index for visit in first) == list(range(20))
    indices = [[visit.index for visit in order(*key)] for key in ((0, 0), (0, 1), (1, 0))]
    assert indices[0] != indices[1]
    assert indices[0] != indices[2]


def test_visits_count_on_over_epochs() -> None:
    sampler = VisitSampler(3, seed=0)
    seen = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        seen += list(sampler)
    assert [visit.visit for visit in seen] == list(range(9))
    assert [visit.epoch for visit in seen] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(sampler) == 3


def test_unshuffled_rows_stand_as_they_are() -> None:
    assert [visit.index for visit in VisitSampler(4, seed=0, shuffle=False)] == [0, 1, 2, 3]


# ---- parts of a batch ---------------------------------------------------------------------------------------------


def of_lengths(lengths: list[int]) -> dict[str, torch.Tensor]:
    rows = [Row([7] * 2, [9] * (length - 2), f"row {n}") for n, length in enumerate(lengths)]
    collator = Collator(Fill.parse("none"), 0, 1000, seed=3)
    return collator([(row, Visit(n, 0, n)) for n, row in enumerate(rows)])


@pytest.mark.parametrize(
    ("lengths", "most", "least", "members"),
    [
        ([10, 20, 19, 10], 1000, 0, [[1, 2], [0, 3]]),  # 10 would leave half of 20 empty
        ([10, 20, 19, 10], 1000, 1000, [[1, 2, 0, 3]]),  # fewer tokens than are worth a pass of their own
        ([10, 20, 19, 10], 1000, 40, [[1, 2], [0, 3]]),
        ([10, 20, 19, 10], 1000, 41, [[1, 2, 0], [3]]),
        ([20, 20, 20, 20], 40, 0, [[0, 1], [2, 3]]),
        ([20, 20, 20], 5, 0, [[0], [1], [2]]),  # one row at least
        ([20, 18, 17], 1000, 0, [[0, 1], [2]]),  # 18 leaves a tenth empty
    ],
)
def test_parts_by_hand(lengths: list[int], most: int, least: int, members: list[list[int]]) -> None:
    parts = by_length(of_lengths(lengths), most=most, least=least)
    assert [part["index"].tolist() for part in parts] == (members if len(members) > 1 else [list(range(len(lengths)))])


def test_parts_are_the_batch_without_padding() -> None:
    lengths = [30, 4, 17, 29, 16, 5]
    batch = of_lengths(lengths)
    parts = by_length(batch, most=64, least=0)
    assert sorted(n for part in parts for n in part["index"].tolist()) == list(range(6))
    for part in parts:
        width = part["ids"].shape[1]
        assert width == max(lengths[n] for n in part["index"].tolist())
        for place, n in enumerate(part["index"].tolist()):
            for name, value in part.items():
                whole = batch[name][n]
                assert torch.equal(value[place], whole[:width] if value.dim() == 2 else whole)
