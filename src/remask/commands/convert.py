"""`remask convert`: a causal model into a diffusion model, an adapter into its base."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from remask.commands.options import parse
from remask.config import ConvertConfig
from remask.errors import UserError, first_line
from remask.imports import uncollected
from remask.progress import working

EXAMPLES = """Examples:
  remask convert --to-diffusion Qwen/Qwen2.5-0.5B --output qwen-diffusion
  remask convert --to-diffusion Qwen/Qwen2.5-0.5B --attention block:4:causal --output qwen-blocks
  remask convert --merge runs/gift-lora --output runs/gift-merged
  remask convert --merge someone/llada-lora --base GSAI-ML/LLaDA-8B-Instruct --output merged"""


def run(arguments: Sequence[str]) -> int:
    """Run `remask convert` with these arguments and return the exit code."""
    config = parse(ConvertConfig, arguments, command="convert", examples=EXAMPLES)
    source = config.to_diffusion or config.merge
    if source is None or (config.to_diffusion and config.merge):
        raise UserError("nothing to convert", mend="give one of --to-diffusion MODEL and --merge ADAPTER")
    if config.base and not config.merge:
        raise UserError("--base is given without --merge", mend="name the adapter: --merge ADAPTER")
    suffix = "diffusion" if config.to_diffusion else "merged"
    target = Path(config.output or f"{Path(source).resolve().name}-{suffix}")
    place = _free(target)

    from safetensors import SafetensorError

    with uncollected():
        from remask.models.convert import merged, to_diffusion
        from remask.models.load import copy_code, quiet_transformers, resolve

    source = resolve(source)
    with working(f"reading {source}"):
        if config.to_diffusion:
            model, tokenizer = to_diffusion(
                source,
                shift=config.shift,
                mask_token=config.mask_token,
                dtype=config.dtype,
                attention=config.attention,
                multiple=config.vocabulary_multiple,
            )
        else:
            model, tokenizer = merged(source, base=config.base, dtype=config.dtype)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})", where=str(target), mend="make room there, or give another --output"
        ) from None
    try:
        with quiet_transformers(), working(f"writing {target}"):
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        if config.merge:
            copy_code(model.name_or_path, temporary)
        temporary.chmod(0o755)
        os.replace(temporary, place)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):
            raise UserError(
                f"cannot be written ({first_line(error)})",
                where=str(target),
                mend="make room there, or give another --output",
            ) from error
        raise
    token = model.config.mask_token_id
    mask = "no mask token" if token is None else f"mask token {tokenizer.mask_token!r} ({token})"
    print(f"{target}: {model.config.model_type}, {model.num_parameters():,} parameters, {mask}")
    return 0


def _free(target: Path) -> Path:
    """The whole path of a folder to write. Raises UserError where something is there, or it has no place."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("is there already", where=str(target), mend="give another --output")
    if not target.resolve().parent.is_dir():
        raise UserError("its folder does not exist", where=str(target), mend="create it first")
    return target.resolve()
