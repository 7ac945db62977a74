"""Chat templates of every public kind: where an answer ends, whose text is kept, and what is text and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from remask.chat_template import template_of, turn_end
from remask.data.chat import decode_text, encode, encode_prompt
from remask.errors import UserError

Q = [{"role": "user", "content": "2+2?"}]
TURN = "<|{{ m.role }}|>{{ m.content }}"
HEADER = "<|assistant|>"


def loop(turn: str, end: str = "{% if add_generation_prompt %}" + HEADER + "{% endif %}") -> str:
    return "{% for m in messages %}" + turn + "{% endfor %}" + end


def byte_tokenizer(
    template: str | None, *special: str, added: tuple[str, ...] = (), **names: Any
) -> PreTrainedTokenizerFast:
    """One token a byte, and the named tokens: a stand-in for a vocabulary that cannot be had."""
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    fast.chat_template = template
    return fast


def made(template: str | None, **further: Any) -> PreTrainedTokenizerFast:
    special = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|end|>")
    return byte_tokenizer(template, *special, eos_token="<|endoftext|>", **further)


def answer_of(tokenizer: Any, messages: list[dict[str, Any]], answer: Any, **further: Any) -> str:
    return tokenizer.decode(encode(tokenizer, messages, answer, where="row", **further).response)


# ---- where an answer ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (loop(TURN + "<|end|>"), "<|end|>"),
        (loop(TURN + "<|end|>\n"), "<|end|>"),
        (loop(TURN + "<|end|>", HEADER), "<|end|>"),  # LLaDA's: the next header whatever add_generation_prompt says
        (loop(TURN + "<|end|>\n", "\n" + HEADER), "<|end|>"),
        (loop(TURN), "<|endoftext|>"),  # GLM's: the next turn closes this one
        (loop(TURN, HEADER), "<|endoftext|>"),
        (loop(TURN + "\n\n"), "<|endoftext|>"),
        (loop("<|{{ m.role }}|>{{ m.content }}{{ eos_token }}"), "<|endoftext|>"),
        (
            loop("{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% else %}[/I]{% endif %}", ""),
            "<|endoftext|>",
        ),
    ],
)
@pytest.mark.parametrize("turns", [Q, [*Q, {"role": "assistant", "content": "4."}, *Q]])
def test_an_answer_ends_with_one_end_token(template: str, end: str, turns: list[dict[str, str]]) -> None:
    tokenizer = made(template)
    assert answer_of(tokenizer, turns, "It is 4.") == f"It is 4.{end}"
    encoded = encode(tokenizer, turns, "It is 4.", where="row")
    assert encoded.prompt == encode_prompt(tokenizer, turns)
    assert template_of(tokenizer).end == encoded.response[-1]
    assert decode_text(tokenizer, encoded.response, [encoded.response[-1]]) == "It is 4."


def test_a_turn_that_nothing_closes_has_no_closing_token() -> None:
    assert turn_end(made(loop(TURN, HEADER))) is None
    assert turn_end(made(None)) is None
    closed = made(loop(TURN + "<|end|>", HEADER))
    assert turn_end(closed) == closed.convert_tokens_to_ids("<|end|>")


def test_a_closing_token_need_not_be_special() -> None:
    tokenizer = byte_tokenizer(loop(TURN + "<|stop|>"), "<|eos|>", added=("<|stop|>",), eos_token="<|eos|>")
    encoded = encode(tokenizer, Q, "4", where="row")
    assert encoded.response[-1] == tokenizer.convert_tokens_to_ids("<|stop|>")


def test_an_answer_that_is_closed_otherwise_is_refused() -> None:
    odd = loop("{% if 'x' in m.content %}{{ m.content }}{% else %}" + TURN + "<|end|>{% endif %}")
    with pytest.raises(UserError, match=r"row: the chat template (does not close|changes the prompt)"):
        encode(made(odd), Q, "x", where="row")


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    with pytest.raises(UserError, match="row: the tokenizer has no EOS token"):
        encode(byte_tokenizer(None, "<|x|>"), Q, "4", where="row")


def test_the_end_token_is_added_by_nothing_between_prompt_and_answer() -> None:
    """A tokenizer may put EOS after every text; an encoder's separator stays, it is no end."""
    tokenizer = made(None, bos_token="<|user|>")
    around = TemplateProcessing(
        single="<|user|> $A <|endoftext|>", special_tokens=[("<|user|>", 257), ("<|endoftext|>", 256)]
    )
    tokenizer.backend_tokenizer.post_processor = around
    encoded = encode(tokenizer, Q, "4", where="row")
    assert tokenizer.decode(encoded.prompt) == "<|user|>2+2?\n"
    assert tokenizer.decode(encoded.response) == "4<|endoftext|>"
    assert encode_prompt(tokenizer, Q) == encoded.prompt


# ---- whose text is kept ----------------------------------------------------------------------------------------------

CUTS = loop("<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>")
NO_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}"
    + TURN
    + "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FIRST_LINE = loop("<|{{ m.role }}|>{{ m.content.split('\n')[0] }}<|end|>")
LAST_ONLY = (
    "{% for m in messages[-2:] %}{% if m.role == 'user' or loop.last %}" + TURN + "<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "messages", "answer", "said"),
    [
        (CUTS, Q, "<think>\nTwo and two.\n</think>\n\n4", "write the answer as it is: 'Two and two.' is missing"),
        (
            CUTS,
            [*Q, {"role": "assistant", "content": "<think>a</think>4"}, *Q],
            "4",
            r"turn 2 \(assistant\) as it is: 'a'",
        ),
        (NO_SYSTEM, [{"role": "system", "content": "Be short."}, *Q], "4", r"leaves out the text of turn 1 \(system\)"),
        (NO_SYSTEM, [{"role": "system", "content": "2"}, *Q], "4", r"leaves out the text of turn 1 \(system\)"),
        (FIRST_LINE, [{"role": "user", "content": "a\nb"}], "4", r"turn 1 \(user\) as it is: 'a\\nb' is missing"),
        (FIRST_LINE, Q, "4\n5", r"the answer as it is: '4\\n5' is missing"),
        (LAST_ONLY, [*Q, {"role": "assistant", "content": "x"}, *Q], "4", "leaves out the text of turn"),
        ("{% for m in messages %}{{ m.content }", Q, "4", "refuses this conversation"),
        ("{{ raise_exception('no, please') }}", Q, "4", r"refuses this conversation \(no, please\)"),
        ("{{ messages[3].content.nothing.there }}", Q, "4", "refuses this conversation"),
        ({"rag": CUTS, "tool_use": CUTS}, Q, "4", "refuses this conversation"),
    ],
)
def test_a_template_that_loses_text_is_refused(template: Any, messages: Any, answer: str, said: str) -> None:
    with pytest.raises(UserError, match=f"row: .*{said}"):
        encode(made(template), messages, answer, where="row")


@pytest.mark.parametrize("answer", ["<think>\nTwo.\n</think>\n\n4", "<think>Two.</think>4", "4", " 4\n"])
def test_white_space_around_texts_and_thoughts_may_change(answer: str) -> None:
    thinks = loop(
        "{% set parts = m.content.split('</think>') %}<|{{ m.role }}|>{% if parts[1] is defined %}<think>\n"
        "{{ parts[0].split('<think>')[1] | trim }}\n</think>\n\n{% endif %}{{ parts[-1] | trim }}<|end|>"
    )
    text = answer_of(made(thinks), Q, answer)
    assert text.endswith("4<|end|>")
    assert ("Two." in text) == ("Two." in answer)


# ---- what is text and nothing else -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template", [None, loop(TURN + "<|end|>"), loop("<|{{ m.role }}|>{{ m.content | trim }}<|end|>", HEADER)]
)
@pytest.mark.parametrize(
    "text",
    [
        "<|end|>",
        "It is <|end|> and then <|user|>x",
        "a <|endoftext|>",
        "<|end|><|end|>",
        "<|en<|end|>d|>",
        "é<|end|>🙂",
    ],
)
def test_control_tokens_in_texts_are_text(template: str | None, text: str) -> None:
    tokenizer = made(template)
    control = {tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens} | {
        index for index, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    plain = encode(tokenizer, [{"role": "user", "content": "x"}], "y", where="row")
    encoded = encode(tokenizer, [{"role": "user", "content": text}], text, where="row")
    assert sum(i in control for i in encoded.prompt) == sum(i in control for i in plain.prompt)
    assert sum(i in control for i in encoded.response) == 1
    assert decode_text(tokenizer, encoded.response, [encoded.response[-1]]) == text
    assert text in tokenizer.decode(encoded.prompt, skip_special_tokens=True)
    assert (
        encode_prompt(tokenizer, [{"role": "user", "content": "x"}], prefill=text)[len(plain.prompt) :]
        == encoded.response[:-1]
    )


def test_control_tokens_that_are_added_but_not_special_are_text_too() -> None:
    """SDAR's mask is one; turns may be written with others. Thoughts are meant to be written by answers."""
    tokenizer = byte_tokenizer(
        loop(
            "<turn>{{ m.role }}\n{{ m.content }}</turn>", "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
        ),
        "<|eos|>",
        added=("<turn>", "</turn>", "<|MASK|>", "<think>", "</think>"),
        eos_token="<|eos|>",
        mask_token="<|MASK|>",
    )
    text = "<think>a</think>b </turn><turn>user <|MASK|>"
    response = encode(tokenizer, Q, text, where="row").response
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    assert [added[i] for i in response if i in added] == ["<think>", "</think>", "</turn>"]
    assert tokenizer.decode(response[:-1]) == text


# ---- further keys, tools, and prompts that are begun answers ---------------------------------------------------------

CALLS = [{"type": "function", "function": {"name": "get_time", "arguments": {"city": "Oslo"}}}]
TOOLS = [{"type": "function", "function": {"name": "get_time", "parameters": {}}}]
READS = "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}" + loop(
    "<|{{ m.role }}|>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}<|end|>"
)


def test_keys_and_tools_go_to_the_template() -> None:
    tokenizer = made(READS)
    answer = {"content": "I look.", "tool_calls": CALLS}
    assert answer_of(tokenizer, Q, answer) == (
        'I look.<call>{"name": "get_time", "arguments": {"city": "Oslo"}}</call><|end|>'
    )
    assert answer_of(tokenizer, Q, {"content": "4", "reasoning_content": "2 twice"}) == "<think>2 twice</think>4<|end|>"
    prompt = tokenizer.decode(encode(tokenizer, Q, "4", where="row", tools=TOOLS).prompt)
    assert prompt.startswith('<|system|>[{"type": "function"')
    turns = [*Q, {"role": "assistant", "content": "", "tool_calls": CALLS}, {"role": "tool", "content": "nine"}]
    assert "<|tool|>nine<|end|>" in tokenizer.decode(encode(tokenizer, turns, "At nine.", where="row").prompt)


@pytest.mark.parametrize("template", [None, loop(TURN + "<|end|>")])
@pytest.mark.parametrize(
    ("further", "said"),
    [
        ({"tool_calls": CALLS}, "a message has tool_calls, and .* does not write it"),
        ({"reasoning_content": "2 twice"}, "a message has reasoning_content"),
        ({"thinking": "2 twice"}, "a message has thinking"),
    ],
)
@pytest.mark.parametrize("in_prompt", [False, True])
def test_what_a_template_does_not_write_is_refused(
    template: str | None, further: Any, said: str, in_prompt: bool
) -> None:
    turn = {"role": "assistant", "content": "4", **further}
    messages, answer = ([*Q, turn, *Q], "4") if in_prompt else (Q, turn)
    with pytest.raises(UserError, match=f"row: {said}"):
        encode(made(template), messages, answer, where="row")


def test_tools_that_a_template_does_not_write_are_refused() -> None:
    with pytest.raises(UserError, match="row: the row has tools, and the chat template does not write them"):
        encode(made(loop(TURN + "<|end|>")), Q, "4", where="row", tools=TOOLS)


def test_other_keys_that_are_not_read_are_told() -> None:
    turns = [{**Q[0], "name": "Ann", "id": 3}]
    assert encode(made(READS), turns, {"content": "4", "weight": 1}, where="row").unread == ("id", "name", "weight")
    named = loop("<|{{ m.role }}|>{{ m.name }}: {{ m.content }}<|end|>")
    assert encode(made(named), turns, "4", where="row").unread == ("id",)


def test_a_prompt_that_ends_with_an_assistants_turn_is_continued() -> None:
    begun = [*Q, {"role": "assistant", "content": "It is "}]
    for template, end in ((loop(TURN + "<|end|>"), "<|end|>"), (None, "<|endoftext|>")):
        tokenizer = made(template)
        encoded = encode(tokenizer, begun, "4.", where="row")
        assert tokenizer.decode(encoded.prompt + encoded.response).endswith(f"It is 4.{end}")
        assert tokenizer.decode(encoded.response) == f"4.{end}"
        assert encoded.prompt == encode_prompt(tokenizer, begun) == encode_prompt(tokenizer, Q, prefill="It is ")


@pytest.mark.parametrize("text", ["\ud83d", "a\udc00"])
def test_half_a_character_is_no_text(text: str) -> None:
    for messages, answer in ((Q, text), ([{"role": "user", "content": text}], "4")):
        with pytest.raises(UserError, match=r"row: .* holds half of a character"):
            encode(made(None), messages, answer, where="row")


# ---- tokenizers that mark words by the space before them -------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize(
    "template",
    [
        loop("<|{{ m.role }}|>\n{{ m.content }}</s>\n", "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"),
        loop("{{ m.role }}: {{ m.content }}</s>", "{% if add_generation_prompt %}assistant: {% endif %}"),
        None,
    ],
)
@pytest.mark.parametrize("answer", ["The sum is 4.", " The", "\nThe </s> sum", "4", "<s>"])
def test_an_answer_reads_the_same_after_its_prompt(scheme: str, template: str | None, answer: str) -> None:
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] * (scheme != "never")),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    texts = ["The sum is 4. The answer to What is 2 and 2 is 4.", "assistant: The", "user: What is", "<|user|>"] * 4
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    encoded = encode(tokenizer, [{"role": "user", "content": "What is 2 and 2?"}], answer, where="row")
    prompt, whole = (tokenizer.decode(ids) for ids in (encoded.prompt, encoded.prompt + encoded.response[:-1]))
    assert whole == prompt + answer
    assert tokenizer.eos_token_id not in encoded.response[:-1]


# ---- the templates of the published checkpoints ----------------------------------------------------------------------

PUBLISHED = ["Dream-v0-Instruct-7B", "LLaDA-8B-Instruct", "LLaDA2.0-mini", "LLaDA2.1-mini", "SDAR-1dot7B-Chat"]
ENDS = {"Dream": "<|im_end|>", "LLaDA-8B": "<|eot_id|>", "LLaDA2": "<|role_end|>", "SDAR": "<|im_end|>"}


@pytest.fixture(params=PUBLISHED)
def published(request: pytest.FixtureRequest, shared: Path) -> tuple[str, Any]:
    """A published chat template on a stand-in vocabulary with the checkpoint's own added tokens."""
    folder = shared / "data" / "official_configs" / request.param
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = config["chat_template"]
    listed = config.get("added_tokens_decoder", {}).values()
    special = [token["content"] for token in listed if token["special"]]
    added = [token["content"] for token in listed if not token["special"]]
    special += [token for token in ("<role>", "</role>", "<|role_end|>") if token in template and token not in special]
    names = {name: config[name] for name in ("bos_token", "eos_token", "mask_token") if config.get(name)}
    special += [token for token in names.values() if token not in special + added]
    return request.param, byte_tokenizer(template, *special, added=tuple(added), **names)


@pytest.mark.shared
@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize(
    "answer", ["It is 4.", "  It is 4.\n", "<think>\nTwo twice.\n</think>\n\nIt is 4.", "a <|im_end|> <|eot_id|> b"]
)
def test_published_templates(published: tuple[str, Any], system: bool, answer: str) -> None:
    name, tokenizer = published
    end = next(end for start, end in ENDS.items() if name.startswith(start))
    turns = [*([{"role": "system", "content": "Be short."}] if system else []), *Q]
    for messages in (turns, [*turns, {"role": "assistant", "content": "Four."}, {"role": "user", "content": "Sure?"}]):
        encoded = encode(tokenizer, messages, answer, where="row")
        assert encoded.prompt == encode_prompt(tokenizer, messages)
        assert encoded.response.count(tokenizer.convert_tokens_to_ids(end)) == 1
        assert encoded.response[-1] == tokenizer.convert_tokens_to_ids(end)
        text = tokenizer.decode(encoded.response[:-1])
        assert text.strip().endswith(answer.strip().rpartition("</think>")[2].strip())
        assert ("Two twice." in text) == ("Two twice." in answer)
        assert not any(header in text for header in ("<|start_header_id|>", "<|im_start|>", "<role>"))


@pytest.mark.shared
def test_llada_trains_no_header(published: tuple[str, Any]) -> None:
    """Its template opens the next turn after every answer: five tokens that are not the answer's."""
    name, tokenizer = published
    if name == "LLaDA-8B-Instruct":
        encoded = encode(tokenizer, Q, "It is 4.", where="row")
        assert tokenizer.decode(encoded.prompt).endswith(
            "2+2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        )
        assert tokenizer.decode(encoded.response) == "It is 4.<|eot_id|>"
