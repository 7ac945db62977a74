"""`remask lm-eval`: the lm-evaluation-harness's own command line, with `--model remask` known to it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from remask.errors import UserError

HELP = """usage: remask lm-eval [the options of lm_eval]

EleutherAI's lm-evaluation-harness, with Remask's models as --model remask.

Examples:
  remask lm-eval --model remask --model_args pretrained=GSAI-ML/LLaDA-8B-Base,dtype=bfloat16,draws=128 \\
    --tasks hellaswag,arc_challenge --batch_size 32
  remask lm-eval --model remask --model_args pretrained=runs/gift,steps=256,max_new_tokens=256,block_length=32 \\
    --tasks gsm8k --apply_chat_template --num_fewshot 0 --output_path results

--model_args takes pretrained, adapter, dtype, quantization, draws (of the ELBO, for likelihoods), seed, check_greedy,
max_length, add_bos_token, and every decoding setting of `remask generate`. --device and --batch_size are the harness's.

`remask lm-eval run --help` shows the harness's options."""


def run(arguments: Sequence[str]) -> int:
    """Run `remask lm-eval` with these arguments and return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        raise SystemExit(0 if arguments else 2)
    try:
        import lm_eval.__main__ as harness
    except ImportError:
        raise UserError("the lm-evaluation-harness is not installed", mend="pip install 'remask[lm-eval]'") from None
    import remask.evaluation.lm_eval  # noqa: F401  (registers the model)

    was, sys.argv = sys.argv, ["lm_eval", *arguments]
    try:
        harness.cli_evaluate()
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 0 if leave.code is None else 2
    finally:
        sys.argv = was
    return 0
