"""The mathematics of masked diffusion: torch and shapes only. No trainer, no files, no global randomness.

Every function is a pure function of (batch, noise, predictions). Import the module you need:

- `noise`: the random numbers that decide a corruption, as data
- `times`: the schedule, from uniform numbers to masking rates
- `corruption`: from noise to masking rates, a mask and the noised ids
- `importance`: β, how much a token matters, from the model's own predictions
- `objective`: the loss of fine-tuning, as four choices
- `uniform`: the loss of models whose noise replaces tokens by others
- `weights`: what the loss of a masked token is weighed with
- `likelihood`: estimates of how likely a model finds an answer
- `estimators`: all of them by name
- `trajectory`: the likelihood of the way an answer was written
- `quadrature`: the ELBO at fixed shares masked
- `block_random`: canvases as in sampling by blocks, and a bound from above
- `draw_by_draw`: the gradient of a loss of such estimates, in the memory of one draw
- `any_order`: the exact likelihood of a short answer, and bounds on that of a longer one
- `halves`: every token scored once, with about half of the others revealed
- `reader`: how all of these ask a model
- `blocks`: rows in blocks: counts, times and choices of each
- `attention`: which token may look at which: what a pass over rows reads
- `rows`: what the records of a batch share
- `head`: losses from hidden states, without keeping the logits
- `capped`: heads whose logits have a soft cap, and their losses
- `token_loss`: losses and entropies from logits
- `precision`: the number format that a forward pass computes in
"""
