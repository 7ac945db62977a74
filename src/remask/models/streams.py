"""A block model's passes for chosen positions: only the tokens that are needed, and no mask of all pairs.

A noised block looks at itself and at the clean blocks before it. So a pass holds each row's clean tokens once, however
many noised versions of the row are read beside them, and of a noised version only the blocks that something is asked
of: a prompt is read once, padding not at all. Attention is computed for a few blocks at a time, against the clean
tokens before them. As the clean tokens look at no noised one, they may also be read alone, their keys and values kept
(`CleanRows`), and the noised versions read later, one after the other.

Shapes: B rows, L length of a row, K noised versions of each row (one after the other: K·B rows), T tokens of a pass, A
tokens whose keys it knows (kept clean ones, then its own), H heads of queries, h of keys, d their width; of a part: g
groups of n queries and m keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from remask.diffusion.attention import BlockCausal, counted
from remask.models.batch import Batch
from remask.models.products import attend

TOGETHER = 128
"""Blocks are put together until they have at least so many queries: one product of a few is slower than a mask."""
PIECES = 8
"""A row is cut into at most about so many pieces: each holds a copy of the keys before it."""
WASTE = 1.25
"""Pieces are computed at once where padding them to one size costs at most this factor."""


class CleanRows:
    """Each layer's keys and values [1, H, C, d] of the C clean tokens of some rows. It stands where transformers'
    attention expects its cache. A pass over the clean rows fills it; later ones find it filled and leave it as it is.

    tokens [B, L]: which tokens of the rows those are.
    """

    def __init__(self, tokens: Bool[Tensor, "B L"], layers: Sequence[tuple[Tensor, Tensor]] | None = None) -> None:
        self.tokens = tokens
        self.layers: dict[int, tuple[Tensor, Tensor]] = dict(enumerate(layers or ()))
        self.filled = layers is not None

    def update(
        self, key: Float[Tensor, "1 H T d"], value: Float[Tensor, "1 H T d"], layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Float[Tensor, "1 H A d"], Float[Tensor, "1 H A d"]]:
        """Keep keys and values of a pass over the clean rows; of another pass, give them with the kept ones before."""
        if not self.filled:
            self.layers[layer_idx] = key, value
        if not self.filled or layer_idx not in self.layers:
            return key, value
        keys, values = self.layers[layer_idx]
        return torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)

    def tensors(self) -> list[Tensor]:
        """Return all keys and values, layer by layer."""
        return [kept for layer in sorted(self.layers) for kept in self.layers[layer]]

    def apart(self) -> CleanRows:
        """Return the same values without their history; a gradient ends in them (`.grad` of `tensors()`)."""
        leaves = [kept.detach().requires_grad_(kept.requires_grad) for kept in self.tensors()]
        return CleanRows(self.tokens, list(zip(leaves[::2], leaves[1::2], strict=True)))


@dataclass(frozen=True)
class Part:
    """A part is queries that are computed together. queries: their numbers among the pass's tokens. keys: those of
    what they look at, among all tokens whose keys are known. allowed: which query may look at which key (None: at all
    of its group). real: which queries are not repeated to fill the group.
    """

    queries: Int[Tensor, "g n"]
    keys: Int[Tensor, "g m"]
    allowed: Bool[Tensor, "g 1 n m"] | None
    real: Bool[Tensor, "g n"]


@dataclass(frozen=True)
class Piece:
    """A piece is some blocks of one row and stream, the tokens from `start` to `end` in the order of all whose keys are
    known. The clean tokens that they look at are the `seen` ones from `first` on.
    """

    start: int
    end: int
    first: int
    seen: int
    noised: bool

    @property
    def size(self) -> tuple[int, int]:
        """Return the number of its queries and of the keys they look at."""
        return self.end - self.start, self.seen + (self.end - self.start if self.noised else 0)


@dataclass(frozen=True)
class Streams:
    """Streams are a pass's attention: its parts, and where each token's output stands among those of all parts."""

    parts: tuple[Part, ...]
    order: Int[Tensor, "T"]


@dataclass(frozen=True)
class Rows:
    """Rows know each token's block, its number in its row, and the numbers of its block by which a clean token and a
    noised one are told what to look at.
    """

    attention: BlockCausal
    attended: Bool[Tensor, "B L"]
    answer: Bool[Tensor, "B L"]
    block: Int[Tensor, "B L"] = field(init=False)
    numbers: tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]] = field(init=False)
    places: Int[Tensor, "B L"] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "block", self.attention.blocks(self.attended, self.answer))
        object.__setattr__(self, "numbers", self.attention.numbers(self.attended, self.answer))
        object.__setattr__(self, "places", counted(self.attended))

    def begin(self) -> Bool[Tensor, "B L"]:
        """Return the tokens that begin a block and have one before them in their row."""
        return self.attended & (self.numbers[1] == self.places) & (self.places > 0)

    def before(self, last: Int[Tensor, "B 1"]) -> Bool[Tensor, "B L"]:
        """Return the tokens of the blocks before a row's `last`: those that something of it may look at."""
        return self.attended & (self.block < last)

    def blocks_with(self, wanted: Bool[Tensor, "R L"]) -> Bool[Tensor, "R L"]:
        """Return all tokens of the blocks that have a wanted one, of R = K·B versions of the rows."""
        copies = len(wanted) // len(self.block)
        block, attended = self.block.repeat(copies, 1), self.attended.repeat(copies, 1)
        number = block - block.min()
        has = torch.zeros(len(block), int(number.max()) + 1, dtype=torch.bool, device=block.device)
        row, place = wanted.nonzero(as_tuple=True)
        has[row, number[row, place]] = True
        return has.gather(1, number) & attended


def clean_batch(rows: Rows, clean: Int[Tensor, "B L"]) -> tuple[Batch, CleanRows]:
    """Return the pass over the clean rows alone, and what it fills: all that a block of the answer may look at."""
    last = torch.where(rows.answer & rows.attended, rows.block, rows.block.min()).amax(-1, keepdim=True)
    kept = CleanRows(rows.before(last))
    tokens = kept.tokens
    inputs: dict[str, Any] = {
        "input_ids": clean[tokens][None],
        "position_ids": rows.places[tokens][None],
        "attention_mask": _unused(clean),
        "past_key_values": kept,
        "streams": _streams(rows, tokens, None, skipped=0),
    }
    nothing = torch.zeros_like(inputs["input_ids"][0], dtype=torch.bool)
    return Batch(inputs, nothing, nothing), kept


def noised_batch(
    rows: Rows,
    noised: Int[Tensor, "R L"],
    clean: Int[Tensor, "B L"],
    positions: Bool[Tensor, "R L"],
    *,
    shift: bool,
    kept: CleanRows | None = None,
) -> Batch:
    """Return the pass over R = K·B noised rows, K versions of each row, and the clean rows before them, or those that
    are kept. `positions` are what is asked of it; with a shift the token before each is needed too.
    """
    wanted = positions.clone()
    if not bool(wanted.any()):
        wanted[0, rows.attended[0].long().argmax()] = True  # a pass is made all the same: others may make one with it
    copies = len(noised) // len(clean)
    of_clean = shift and rows.attention.causal  # the clean stream predicts what begins a block
    if shift:
        wanted[:, :-1] |= (positions & ~rows.begin().repeat(copies, 1) if of_clean else positions)[:, 1:]
    asked = rows.blocks_with(wanted)
    if kept is None:
        lowest = rows.block.min()
        block = rows.block.repeat(copies, 1)
        last = torch.where(asked, block, lowest).amax(-1).view(copies, -1).amax(0)[:, None]
        tokens = rows.before(last)
    else:
        tokens = kept.tokens
    ids, places = noised[asked], rows.places.repeat(copies, 1)[asked]
    positions = positions[asked]
    before = int(tokens.sum())
    if kept is None:
        ids, places = torch.cat([clean[tokens], ids]), torch.cat([rows.places[tokens], places])
        positions = torch.cat([positions.new_zeros(before), positions])
    starts = torch.ones_like(places, dtype=torch.bool)
    starts[1:] = places[1:] != places[:-1] + 1
    inputs = {
        "input_ids": ids[None],
        "position_ids": places[None],
        "attention_mask": _unused(clean),
        "streams": _streams(rows, tokens, asked, skipped=0 if kept is None else before),
    }
    predicting = _predicting(rows, tokens, asked, starts) if of_clean else None
    return Batch(inputs if kept is None else {**inputs, "past_key_values": kept}, positions, starts, predicting)


def _predicting(
    rows: Rows, clean: Bool[Tensor, "B L"], asked: Bool[Tensor, "R L"], starts: Bool[Tensor, "T"]
) -> Int[Tensor, "T"]:
    """The token of a pass over clean and asked ones whose output predicts each: of one that begins a block the clean
    one before it.
    """
    found = torch.arange(len(starts), device=starts.device) - (~starts).long()
    number_of_clean = (clean.flatten().cumsum(0) - 1).view_as(clean)
    begins = rows.begin().repeat(len(asked) // len(clean), 1)[asked]
    last = number_of_clean.roll(1, 1).repeat(len(asked) // len(clean), 1)[asked]
    noised = found[int(clean.sum()) :]
    noised[begins] = last[begins]
    return found


def _unused(ids: Tensor) -> Tensor:
    """A mask of four dimensions is passed on as it is, whatever it says: transformers makes none of [T, T]."""
    return torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=ids.device)


def _streams(rows: Rows, clean: Tensor, asked: Tensor | None, *, skipped: int) -> Streams:
    """The attention of a pass over the clean tokens and the noised ones that are asked; the first `skipped` of them
    are kept from another pass, and are no queries of this one.
    """
    of_clean, of_noised = rows.numbers
    number = of_clean[clean]
    segments = list(_segments(rows.block, clean, 0))
    pieces = [] if skipped else [piece for at, blocks in segments for piece in _pieces(at, blocks, at, blocks, False)]
    if asked is not None:
        versions = rows.block.repeat(len(asked) // len(rows.block), 1)
        number = torch.cat([number, of_noised.repeat(len(versions) // len(of_noised), 1)[asked]])
        for count, (at, blocks) in enumerate(_segments(versions, asked, int(clean.sum()))):
            first, before = segments[count % len(segments)]
            pieces += _pieces(at, blocks, first, before, True)
    parts = tuple(_part(among, number, skipped) for among in _alike(pieces))
    found = torch.cat([number.new_zeros(0), *(part.queries[part.real] for part in parts)])
    return Streams(parts, torch.empty_like(found).scatter_(0, found, torch.arange(len(found), device=found.device)))


def _segments(block: Tensor, tokens: Tensor, start: int) -> Iterator[tuple[int, list[int]]]:
    """Where each row's tokens begin, counted from `start`, and their blocks."""
    lengths, numbers = tokens.sum(-1).tolist(), block[tokens].tolist()
    at = 0
    for length in lengths:
        yield start + at, numbers[at : at + length]
        at += length


def _pieces(at: int, blocks: list[int], first: int, before: list[int], noised: bool) -> Iterator[Piece]:
    """A row's tokens from `at` on, whose blocks are given, in pieces of whole blocks; the row's clean tokens are those
    from `first` on, whose blocks are `before`.
    """
    least = max(TOGETHER, -(-len(blocks) // PIECES))
    seen, size, start = 0, 0, 0
    runs = [(number, len(list(run))) for number, run in groupby(blocks)]
    for position, (number, length) in enumerate(runs):
        while seen < len(before) and before[seen] < number + (not noised):
            seen += 1
        size += length
        if size >= least or position == len(runs) - 1:
            yield Piece(at + start, at + start + size, first, seen, noised)
            start, size = start + size, 0


def _alike(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """The pieces in groups that are computed at once."""
    among: list[Piece] = []
    queries = keys = needed = 0
    for piece in sorted(pieces, key=lambda piece: (piece.noised, piece.size)):
        n, m = piece.size
        queries, keys, needed = max(queries, n), max(keys, m), needed + n * m
        wasteful = (len(among) + 1) * queries * keys > WASTE * needed
        if among and (among[0].noised != piece.noised or wasteful):
            yield among
            among, queries, keys, needed = [], n, m, n * m
        among.append(piece)
    if among:
        yield among


def _part(pieces: list[Piece], number: Tensor, skipped: int) -> Part:
    """The pieces as one part; `number` is the block of every token whose keys are known."""
    device, noised = number.device, pieces[0].noised
    n, m = (max(sizes) for sizes in zip(*(piece.size for piece in pieces), strict=True))
    start, end, first, seen = (
        torch.tensor(values, device=device)[:, None]
        for values in zip(*((p.start, p.end, p.first, p.seen) for p in pieces), strict=True)
    )
    query = torch.arange(n, device=device) + start
    real = query < end
    query = torch.minimum(query, end - 1)
    place = torch.arange(m, device=device).expand(len(pieces), m)
    of_clean = place < seen
    own = torch.minimum(place - seen + start, end - 1)
    key = torch.where(of_clean, place + first, own)
    there = of_clean | (noised & (place - seen < end - start))
    of, to = number[query][:, :, None], number[key][:, None, :]
    clean_allowed = to < of if noised else to <= of
    allowed = torch.where(of_clean[:, None, :], clean_allowed, to == of) & there[:, None, :]
    return Part(query - skipped, key, None if bool(allowed.all()) else allowed[:, None], real)


def attention(
    query: Float[Tensor, "1 H T d"],
    key: Float[Tensor, "1 h A d"],
    value: Float[Tensor, "1 h A d"],
    streams: Streams,
    dropout: float,
    scaling: float | None,
) -> Float[Tensor, "1 T H d"]:
    """Compute each token's attention, part by part."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    found = []
    for part in streams.parts:
        of, to, said = (_taken(x, index) for x, index in ((q, part.queries), (k, part.keys), (v, part.keys)))
        out = attend(of, to, said, allowed=part.allowed, dropout=dropout, scaling=scaling)
        found.append(out.transpose(1, 2)[part.real])
    return torch.cat(found).index_select(0, streams.order)[None]


def _taken(of_tokens: Float[Tensor, "A H d"], index: Int[Tensor, "g n"]) -> Float[Tensor, "g H n d"]:
    """What is said of those tokens. The gradient of `index_select` is added up by many threads, that of an index is
    not.
    """
    return of_tokens.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)
