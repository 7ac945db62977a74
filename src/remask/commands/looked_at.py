"""The rows that an instrument looks at: few of them, from the validation split where they are generated."""

from __future__ import annotations

from typing import Any

from remask.errors import UserError


def read_rows(
    data: str | None, rows: int | None, default: int, tokenizer: Any, *, prompt_style: str, max_length: int
) -> list[Any]:
    """Return the first `rows` of `data`, tokenised. Without `rows` they are `default`, or all where the data has fewer;
    without `data` they are generated. Raises UserError where there are fewer than were asked for, or none.
    """
    from remask.data.canvas import build_rows, tell_faults
    from remask.data.sources import Loaded, load_examples
    from remask.tasks.generated import generated_examples, is_generated

    count = rows or default
    source = data or f"generated:sudoku+countdown:{count}"
    if is_generated(source):
        loaded = Loaded(generated_examples(source, split="validation", prompt_style=prompt_style))
    else:
        loaded = load_examples(source)
    if len(loaded.examples) < (rows or 1):
        raise UserError(
            f"{len(loaded.examples)} rows where {count} were asked for",
            where=source,
            mend="lower --rows, or name more data",
        )
    mask_id = tokenizer.mask_token_id
    built = build_rows(loaded.examples[:count], tokenizer, max_length=max_length, over_long="error", mask_id=mask_id)
    tell_faults(source, loaded, built)
    return built.rows
