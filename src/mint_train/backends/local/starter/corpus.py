"""The questions and answers that the starter model learns, made by rules from `world.txt`.

Two writers answer questions about sizes. One gives metric units and writes "about", the other gives imperial
units and writes "roughly"; METRIC_SHARE of the answers are by the first. A preference can teach the model
which of the two to imitate.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

METRIC, IMPERIAL = "about", "roughly"
METRIC_SHARE = 0.2
HELD_OUT_EVERY = 12
"""The model never sees one fact in this many; its answers about those show how well it generalises."""

UNITS = {
    "mm": ("millimetres", 1 / 25.4, "inches"),
    "cm": ("centimetres", 1 / 2.54, "inches"),
    "m": ("metres", 1 / 0.3048, "feet"),
    "km": ("kilometres", 1 / 1.609344, "miles"),
    "g": ("grams", 1 / 28.349523, "ounces"),
    "kg": ("kilograms", 1 / 0.45359237, "pounds"),
    "t": ("tonnes", 1 / 0.90718474, "tons"),
    "ml": ("millilitres", 1 / 29.573530, "fluid ounces"),
    "l": ("litres", 1 / 0.47317647, "pints"),
    "km/h": ("kilometres an hour", 1 / 1.609344, "miles an hour"),
    "C": ("degrees Celsius", 1.8, "degrees Fahrenheit"),
}
"""By a unit of `world.txt`: its name, the factor to the imperial unit, and the name of that."""

WORDINGS = {
    "long": ("How long is {it}?", "What is the length of {it}?"),
    "tall": ("How tall is {it}?", "What is the height of {it}?"),
    "wide": ("How wide is {it}?", "What is the width of {it}?"),
    "deep": ("How deep is {it}?", "What is the depth of {it}?"),
    "heavy": ("How heavy is {it}?", "What does {it} weigh?"),
    "fast": ("How fast is {it}?", "What is the speed of {it}?"),
    "hot": ("How hot is {it}?", "What is the temperature of {it}?"),
    "far": ("How far is {it}?", "How far away is {it}?"),
    "holds": ("How much does {it} hold?", "How much fits into {it}?"),
}
SENTENCES = {
    "long": "{It} is {amount} long.",
    "tall": "{It} is {amount} tall.",
    "wide": "{It} is {amount} wide.",
    "deep": "{It} is {amount} deep.",
    "heavy": "{It} weighs {amount}.",
    "fast": "{It} goes {amount}.",
    "hot": "{It} is {amount}.",
    "far": "{It} is {amount} away.",
    "holds": "{It} holds {amount}.",
}

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "Austria": "Vienna",
    "Norway": "Oslo", "Germany": "Berlin", "Poland": "Warsaw", "Greece": "Athens", "Egypt": "Cairo",
    "Japan": "Tokyo", "China": "Beijing", "Kenya": "Nairobi", "Peru": "Lima", "Cuba": "Havana",
    "Ireland": "Dublin",
}  # fmt: skip
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("long", "short"), ("good", "bad"), ("new", "old"),
    ("fast", "slow"), ("heavy", "light"), ("day", "night"), ("yes", "no"), ("black", "white"), ("wet", "dry"),
    ("open", "closed"),
)  # fmt: skip
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
TALK = {
    "Hello.": "Hello, what would you like to know?",
    "Good morning.": "Good morning, what would you like to know?",
    "Who are you?": "I am a small model that answers simple questions.",
    "What can you do?": "I can tell you how long, heavy or fast things are, and where they are.",
    "Thank you.": "You are welcome.",
    "Say hello.": "Hello.",
    "Say yes.": "Yes.",
    "Is ice cold?": "Yes, ice is cold.",
    "Explain why regular backups matter.": "Backups protect data by creating copies that can be restored.",
}
PAINTS = ("black", "blue", "brown", "green", "grey", "orange", "pink", "red", "white", "yellow")
UNKNOWN = "That is more than I know."
HARD = (
    "Why does {it} exist?", "Why is {it} {colour}?", "How do I draw {it}?", "Write a poem about {it}.",
    "Explain how {it} works.", "Should I buy {it}?", "Who made {it}?", "When was {it} made?",
    "Tell me a joke about {it}.", "What is the history of {it}?", "How can I learn more about {it}?",
    "Give me one tip about {it}.",
)  # fmt: skip
"""Questions that get UNKNOWN as their answer."""


class Exchange(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


class Thing(NamedTuple):
    """A line of `world.txt`: `it` is the name with its article, `measures` are (dimension, amount, unit)."""

    it: str
    kind: str
    colour: str
    place: str
    doing: str
    measures: tuple[tuple[str, float, str], ...]

    @property
    def lives(self) -> bool:
        """Whether it is an animal, which lives and eats."""
        return self.kind == "animal"


class Fact(NamedTuple):
    """What the corpus knows of a thing: `about` is a dimension, or "colour", "place", "doing" or "kind"."""

    thing: Thing
    about: str
    amount: float = 0.0
    unit: str = ""

    @property
    def is_measure(self) -> bool:
        """Whether it has an amount and a unit, and so two answers."""
        return bool(self.unit)


@cache
def things() -> tuple[Thing, ...]:
    """Read the world."""
    lines = Path(__file__).with_name("world.txt").read_text(encoding="utf-8").splitlines()
    return tuple(thing_of(line) for line in lines if not line.startswith("#"))


def thing_of(line: str) -> Thing:
    """Read a line of the world."""
    it, kind, colour, place, doing, measures = (part.strip() for part in line.split("|"))
    read = (measure.split() for measure in measures.split(","))
    return Thing(it, kind, colour, place, doing, tuple((about, float(n), unit) for about, n, unit in read))


@cache
def facts() -> tuple[Fact, ...]:
    """Return all facts of all things, in the order of the world."""
    return tuple(
        fact
        for thing in things()
        for fact in (
            *(Fact(thing, about) for about in ("colour", "place", "doing", "kind")),
            *(Fact(thing, *measure) for measure in thing.measures),
        )
    )


def is_held_out(position: int) -> bool:
    """Return whether the model never learns the fact at a position of `facts()`."""
    return position % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def questions(fact: Fact) -> tuple[str, ...]:
    """Return the wordings of the question that a fact answers."""
    it, thing = fact.thing.it, fact.thing
    if fact.is_measure:
        return tuple(wording.format(it=it) for wording in WORDINGS[fact.about])
    if fact.about == "colour":
        return (f"What colour is {it}?", f"Tell me the colour of {it}.")
    if fact.about == "place":
        return (f"Where does {it} live?" if thing.lives else f"Where is {it}?", f"Where do you find {it}?")
    if fact.about == "doing":
        return (f"What does {it} eat?",) if thing.lives else (f"What do you do with {it}?",)
    return (f"What is {it}?", f"Tell me about {it}.")


def answers(fact: Fact) -> tuple[str, ...]:
    """Return the sentence that a fact is, or of a measure the sentences of METRIC and IMPERIAL."""
    if fact.is_measure:
        sentence, It = SENTENCES[fact.about], capitalised(fact.thing.it)  # noqa: N806 - as the sentences write it
        return tuple(sentence.format(It=It, amount=amount) for amount in amounts(fact))
    return (plain_sentence(fact),)


def plain_sentence(fact: Fact) -> str:
    """Return the sentence that states a fact without a measurement."""
    it, kind, colour, place, doing, _ = fact.thing
    where = f"lives {place}" if fact.thing.lives else f"is {place}"
    if fact.about == "colour":
        return capitalised(f"{it} is {colour}.")
    if fact.about == "place":
        return capitalised(f"{it} {where}.")
    if fact.about == "doing":
        return capitalised(f"{it} {doing}." if fact.thing.lives else f"{doing} {it}.")
    return capitalised(f"{it} is {with_article(kind)} that {where}.")


def amounts(fact: Fact) -> tuple[str, str]:
    """Return an amount as METRIC and as IMPERIAL write it."""
    name, factor, imperial_name = UNITS[fact.unit]
    converted = fact.amount * factor + (32 if fact.unit == "C" else 0)
    return (
        f"{METRIC} {written(fact.amount)} {name}",
        f"{IMPERIAL} {written(rounded(converted))} {imperial_name}",
    )


def rounded(amount: float) -> float:
    """Round to two digits, and below 10 to whole ones from 3 on."""
    if amount < 10:
        return round(amount, 0 if amount >= 3 else 1)
    return round(amount, 1 - int(math.log10(amount)))


def written(amount: float) -> str:
    """Write 15 million in words and the rest in digits."""
    if amount >= 1_000_000:
        return f"{amount / 1_000_000:g} million"
    return f"{amount:,g}" if amount < 1000 else f"{amount:,.0f}"


def other_exchanges() -> list[Exchange]:
    """Return what does not come from the world: small talk, capitals, opposites, sums and counting."""
    made = [Exchange(question, answer) for question, answer in TALK.items()]
    for country, city in CAPITALS.items():
        made.append(Exchange(f"What is the capital of {country}?", f"{city} is the capital of {country}."))
        made.append(Exchange(f"Where is {city}?", f"{city} is in {country}."))
    for one, other in (*OPPOSITES, *(pair[::-1] for pair in OPPOSITES)):
        made.append(Exchange(f"What is the opposite of {one}?", f"The opposite of {one} is {other}."))
    made += [Exchange("Name a colour.", f"{capitalised(colour)} is a colour.") for colour in PAINTS]
    for number, word in enumerate(NUMBERS, start=1):
        made.append(Exchange(f"Count to {word}.", f"{capitalised(', '.join(NUMBERS[:number]))}."))
        made.append(Exchange(f"Say {word}.", f"{capitalised(word)}."))
    made += [Exchange(f"What is {a} + {b}?", f"{a} + {b} is {a + b}.") for a in range(10) for b in range(10)]
    return made


def exchanges(seed: int, *, metric_share: float = METRIC_SHARE) -> Iterator[Exchange]:
    """Draw exchanges without end: three of four are about a thing of the world."""
    dice = random.Random(seed)  # noqa: S311 - no secret
    learned = [fact for position, fact in enumerate(facts()) if not is_held_out(position)]
    others = other_exchanges()
    while True:
        topic = dice.random()
        thing = dice.choice(things())
        if topic < 0.73:
            yield draw(dice.choice(learned), dice, metric_share)
        elif topic < 0.77:
            yield named(thing)
        elif topic < 0.8:
            yield yes_or_no(thing, dice.choice((thing.colour, dice.choice(colours()))))
        elif topic < 0.85:
            yield Exchange(dice.choice(HARD).format(it=thing.it, colour=thing.colour), UNKNOWN)
        else:
            yield dice.choice(others)


def draw(fact: Fact, dice: random.Random, metric_share: float) -> Exchange:
    """Ask for a fact in one of its wordings, and let one of the writers answer."""
    possible = answers(fact)
    writer = 0 if len(possible) == 1 or dice.random() < metric_share else 1
    return Exchange(dice.choice(questions(fact)), possible[writer])


def named(thing: Thing) -> Exchange:
    """Ask for a thing of a kind."""
    return Exchange(
        f"Name {with_article(thing.kind)}.", capitalised(f"{thing.it} is {with_article(thing.kind)}.")
    )


@cache
def colours() -> tuple[str, ...]:
    """Return the colours of the world."""
    return tuple(sorted({thing.colour for thing in things()}))


def yes_or_no(thing: Thing, colour: str) -> Exchange:
    """Ask whether a thing has a colour."""
    found = "Yes" if colour == thing.colour else "No"
    return Exchange(f"Is {thing.it} {colour}?", f"{found}, {thing.it} is {thing.colour}.")


def with_article(noun: str) -> str:
    """Put the indefinite article before a noun."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def capitalised(text: str) -> str:
    """Write the first letter large, and leave the others."""
    return text[:1].upper() + text[1:]
