"""Prompts in plain English about everyday things, for a causal model to answer (`remask distil --data topics:1000`).

    topics:<prompts>[:<seed>]             for training
    topics-held-out:<prompts>[:<seed>]    about things that no prompt of `topics` is about

Every pair of a form and a thing comes once before any comes again. They hold no answers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from remask.errors import UserError

FORMS = (
    "Write one sentence about {thing}.",
    "Tell me one thing about {thing} in one sentence.",
    "Why do people care about {thing}? Answer in one sentence.",
    "Explain {thing} to a child in one sentence.",
    "Describe {thing} in one short sentence.",
    "What would a teacher say about {thing}? Answer in one sentence.",
    "Name one fact about {thing}.",
    "Begin a story about {thing} with one sentence.",
)
WORDS = """
rain snow wind fog lightning thunder clouds rainbows sunlight ice fire smoke sand clay stone gold silver copper iron
glass paper ink wood cotton wool silk leather rubber soap salt sugar honey butter cheese bread rice corn wheat
potatoes tomatoes onions apples oranges lemons bananas grapes coffee tea milk water soup chocolate pepper horses
cows sheep goats pigs dogs cats mice rabbits foxes wolves bears lions elephants whales dolphins sharks salmon frogs
snakes turtles crocodiles eagles owls crows penguins bees ants butterflies spiders worms trees leaves roots seeds
flowers roses grass mushrooms moss forests rivers lakes oceans islands mountains valleys deserts volcanoes
earthquakes caves glaciers beaches farms gardens villages cities streets bridges tunnels castles houses windows
doors roofs kitchens chairs tables beds lamps candles mirrors clocks keys locks ropes nails hammers saws needles
scissors knives spoons cups plates bottles baskets boxes bags shoes hats coats gloves umbrellas glasses rings coins
stamps letters books maps newspapers libraries schools museums hospitals markets factories ships boats trains
bicycles cars buses airplanes balloons rockets satellites telescopes microscopes compasses thermometers computers
telephones cameras radios batteries magnets engines wheels pumps pianos violins drums flutes guitars songs dances
paintings poems stories plays games chess football swimming running sleep dreams memory language numbers music
gravity electricity sound light heat energy oxygen carbon
"""
THINGS = tuple(WORDS.split())
HELD_OUT = 24
"""The number of things that only `topics-held-out` is about."""
SOURCE = re.compile(r"(topics|topics-held-out):(\d+)(?::(\d+))?")


def is_topics(source: str) -> bool:
    """Return whether a source of data asks for these prompts."""
    return source.partition(":")[0] in ("topics", "topics-held-out")


def topics(source: str) -> list[str]:
    """Return the prompts that a source asks for, in an order drawn from its seed. Raises UserError where its text says
    no number of them.
    """
    match = SOURCE.fullmatch(source)
    if match is None or int(match[2]) < 1:
        raise UserError(
            f"{source!r} says no number of prompts", mend="write topics:1000, or topics:1000:7 with a seed of your own"
        )
    pairs = _pairs(match[1] == "topics-held-out", int(match[3] or 0))
    return [next(pairs) for _ in range(int(match[2]))]


def _pairs(held_out: bool, seed: int) -> Iterator[str]:
    """All pairs of forms and things, again and again, each time in another order."""
    things = list(THINGS)
    random.Random("things").shuffle(things)  # the same are held out for every seed
    things = things[:HELD_OUT] if held_out else things[HELD_OUT:]
    draw = random.Random(seed)
    while True:
        every = [form.format(thing=thing) for thing in things for form in FORMS]
        draw.shuffle(every)
        yield from every
