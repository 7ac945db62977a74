"""What `remask doctor` looks at. Each check returns what it found; none raises for what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from remask.errors import UserError, first_line

GIB = 2**30
NEEDED = 100 * 2**20
"""The free bytes without which not even a run of an embedded model can be saved."""
CHECKPOINT = 16 * GIB
"""The bytes that LLaDA-8B or Dream-7B takes in bfloat16."""
FOR_CONTRIBUTORS = ("dev", "docs")
"""The extras that are not for users."""
PURPOSE = {
    "gguf": "GGUF files",
    "gym": "reasoning-gym's tasks",
    "kernels": "Liger's kernels on CUDA",
    "lm-eval": "remask lm-eval",
    "quantization": "weights in 4 or 8 bits",
    "ray": "rollouts on a Ray cluster",
    "serve": "remask serve",
}
PUZZLE, ANSWER, LOG_P = "sudoku 1300 0003 3140 2001", "1324421331422431", -2.22691
"""A puzzle, what `tiny-direct` writes for it at temperature 0 (which solves it), and the sum of the log-probabilities,
in nats, of the answer and its end where all of it is masked."""
TOLERANCE = 1e-3
"""How far that sum may be off: processors differ in the order in which they add."""

State = Literal["ok", "absent", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `ok`, `absent` (optional, or not needed on this machine) or `broken` (required)."""

    part: str
    state: State
    found: str
    mend: str | None = None


def python() -> Finding:
    """Return whether Python is as new as the package asks for."""
    found = f"Python {platform.python_version()}"
    try:
        asked = (metadata.metadata("remask").get_all("Requires-Python") or [">=3.11"])[0]
    except metadata.PackageNotFoundError:
        asked = ">=3.11"
    if SpecifierSet(asked).contains(platform.python_version(), prereleases=True):
        return Finding("python", "ok", found)
    return Finding("python", "broken", f"{found}, but {asked} is required", "install it and make a new environment")


def libraries() -> list[Finding]:
    """Return one finding of all required libraries together, or one of each that is missing or too old; then one of
    each extra that users may want.
    """
    try:
        asked = [Requirement(text) for text in metadata.requires("remask") or []]
    except metadata.PackageNotFoundError:
        return [Finding("libraries", "broken", "Remask is not installed as a package", "pip install -e .")]
    extras = sorted(set(metadata.metadata("remask").get_all("Provides-Extra") or []) - set(FOR_CONTRIBUTORS))
    required = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [(one, said) for one in required if (said := _unmet(one))]
    found = [Finding("libraries", "broken", said, f"pip install '{one.name}{one.specifier}'") for one, said in wrong]
    if not found:
        shown = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "peft"))
        found = [Finding("libraries", "ok", f"{shown}, and {len(required) - 3} others as required")]
    for extra in extras:
        parts = [one for one in asked if one not in required and one.marker and one.marker.evaluate({"extra": extra})]
        lacking = [said for one in parts if (said := _unmet(one))]
        purpose = PURPOSE.get(extra, "see the documentation")
        if lacking:
            found.append(
                Finding(
                    f"extra {extra}", "absent", f"{', '.join(lacking)} ({purpose})", f"pip install 'remask[{extra}]'"
                )
            )
        else:
            found.append(Finding(f"extra {extra}", "ok", purpose))
    return found


def _unmet(asked: Requirement) -> str | None:
    """Return what is wrong with an installed library, or None."""
    try:
        version = metadata.version(asked.name)
    except metadata.PackageNotFoundError:
        return f"{asked.name} is not installed"
    if asked.specifier.contains(version, prereleases=True):
        return None
    return f"{asked.name} is {version}, but {asked.specifier} is required"


def device() -> Iterator[Finding]:
    """Yield what processor, memory and GPUs there are."""
    import torch

    from remask.environment import hardware

    seen = hardware("cpu")
    yield Finding("processor", "ok", f"{seen['processor']}, {_cores()} cores, torch uses {seen['threads']}")
    memory = _memory()
    if memory:
        yield Finding("memory", "ok", f"{memory[1] / GIB:.1f} of {memory[0] / GIB:.1f} GiB free")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            yield Finding("cuda", "ok", f"{name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free")
    elif torch.version.cuda is None:
        yield Finding(
            "cuda", "absent", "this torch is a build without CUDA", "for a GPU: pip install --force-reinstall torch"
        )
    else:
        yield Finding("cuda", "absent", "torch sees no GPU", "`nvidia-smi` says whether the driver does")


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> tuple[int, int] | None:
    """(total, free) bytes of memory; None where the system does not say."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(lines[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return None
    return total, free


def sandbox() -> Finding:
    """Return whether programs that a model wrote can be run here, as `Sandbox.check` finds it."""
    from remask.sandbox import Sandbox

    try:
        Sandbox(workers=1).check()
    except UserError as error:
        return Finding("sandbox", "absent", f"HumanEval and MBPP cannot be graded: {error.what}", error.mend)
    return Finding("sandbox", "ok", "bubblewrap runs programs that a model wrote")


def fused_kernels() -> Finding:
    """Return whether fused kernels would run; they need a GPU, and are off where `REMASK_KERNELS` does not say."""
    import torch

    from remask import kernels

    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if not torch.cuda.is_available():
        return Finding("kernels", "absent", "not needed without CUDA: plain PyTorch runs instead")
    if not kernels.triton_is_here() or compiler is None:
        lacking = "Triton" if not kernels.triton_is_here() else "a C compiler, which Triton needs"
        return Finding("kernels", "absent", f"{lacking} is missing", "install it, or leave REMASK_KERNELS unset")
    if not kernels.ON:
        return Finding("kernels", "absent", "Triton is there, kernels are switched off", "REMASK_KERNELS=on uses them")
    return Finding("kernels", "ok", f"{', '.join(kernels.in_use())}, with {compiler}")


def disk(folder: str) -> list[Finding]:
    """Return how much room there is where runs go and where the hub's files are kept."""
    found = [_room("runs' disk", Path(folder), NEEDED, "free some, or run elsewhere with --output-dir")]
    if find_spec("huggingface_hub") is not None:
        from huggingface_hub.constants import HF_HUB_CACHE

        found.append(_room("hub cache", Path(HF_HUB_CACHE), CHECKPOINT, "HF_HOME=/a/larger/disk puts the cache there"))
    return found


def _room(part: str, folder: Path, needed: int, mend: str) -> Finding:
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    said = f"{free / GIB:.1f} GiB free at {folder}"
    must: State = "broken" if needed == NEEDED else "absent"
    if not os.access(there, os.W_OK):
        return Finding(part, must, f"{folder} cannot be written", mend)
    if free < needed:
        short = f"{needed / GIB:.0f} GiB are needed for a model of 8B" if needed > NEEDED else "too little for a run"
        return Finding(part, must, f"{said}: {short}", mend)
    return Finding(part, "ok", said)


def self_test(device: str) -> Finding:
    """Return whether an embedded model writes a known answer on a device, with its known likelihood."""
    started = time.perf_counter()
    try:
        text, log_p = _answered(device)
    except Exception as error:  # whatever is broken: that is what is asked
        return Finding(f"self-test {device}", "broken", f"{type(error).__name__}: {first_line(error)}", REINSTALL)
    seconds = f"{time.perf_counter() - started:.1f} s"
    if text != ANSWER:
        return Finding(f"self-test {device}", "broken", f"wrote {text!r} instead of {ANSWER!r}", REINSTALL)
    if not abs(log_p - LOG_P) < TOLERANCE:
        wrong = f"log p of a known answer is {log_p:.4f} instead of {LOG_P:.4f}"
        return Finding(f"self-test {device}", "broken", wrong, REINSTALL)
    return Finding(f"self-test {device}", "ok", f"a Sudoku solved as expected, log p {log_p:.3f} ({seconds})")


REINSTALL = "pip install --force-reinstall remask, in a new environment if that does not help"


def _answered(device: str) -> tuple[str, float]:
    """(what tiny-direct writes for the puzzle, the log-probability of the answer with all of it masked)."""
    import torch

    from remask.data.chat import encode_prompt
    from remask.models.load import load
    from remask.sampling.generate import generate

    model, tokenizer = load("tiny-direct", device=device)
    written = generate(model, tokenizer, [PUZZLE], temperature=0.0)
    answer = torch.tensor(written.token_ids[0][: len(ANSWER) + 1], device=model.device)
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": PUZZLE}])
    canvas = torch.tensor([[*prompt, *[tokenizer.mask_token_id] * len(answer)]], device=model.device)
    with torch.no_grad():
        log_p = model(input_ids=canvas).logits[0, -len(answer) :].float().log_softmax(-1)
    return written.texts[0], float(log_p.gather(-1, answer[:, None]).sum())


def everything(folder: str) -> Iterator[Finding]:
    """Yield every finding, the quick ones first; what cannot be asked without torch is left out where it is missing or
    cannot be imported.
    """
    yield python()
    yield from libraries()
    yield from disk(folder)
    yield sandbox()
    if find_spec("torch") is None or sys.version_info < (3, 11):
        return
    try:
        import torch
    except Exception as error:  # a library that it needs is not there, or of another build
        said = f"cannot be imported: {first_line(error)}"
        yield Finding("torch", "broken", said, "pip install --force-reinstall torch")
        return
    yield from device()
    yield fused_kernels()
    for name in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        yield self_test(name)
