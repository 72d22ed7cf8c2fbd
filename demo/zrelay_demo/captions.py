"""Canonical words for scenes, and the way back; the evaluation's main table uses no other wording."""

import re

from .world import COLOURS, PLACES, SHAPES, SIZES, STYLES, Look, Object, Scene, one, pair, several

NUMBERS = {2: "two", 3: "three", 4: "four"}
_COUNTS = {word: count for count, word in NUMBERS.items()}


def canonical(scene: Scene) -> str:
    """The one wording that the evaluation uses."""
    first = scene.objects[0]
    ground = f" on {article(scene.background)} background"
    if scene.kind == "one":
        place = "" if scene.place == "center" else f" at the {scene.place}"
        return article(_phrase(first)) + place + ground
    if scene.kind == "count":
        return f"{NUMBERS[len(scene.objects)]} {_adjectives(first)} {plural(first.shape)}{ground}"
    relation = " to the left of " if scene.relation == "left of" else " above "
    return article(_phrase(first)) + relation + article(_phrase(scene.objects[1])) + ground


def parse(text: str) -> Scene:
    """The nominal scene of a canonical prompt; ValueError when the wording is another one."""
    match = re.fullmatch(r"(.+) on an? (\w+) background", text)
    if match is None or match[2] not in COLOURS:
        raise ValueError(f"prompt: expected canonical wording '... on a <colour> background', got {text!r}")
    subject, ground = match[1], match[2]
    for words, relation in ((" to the left of ", "left of"), (" above ", "above")):
        if words in subject:
            first, second = subject.split(words, 1)
            return pair(_look(_singular(first, text), text), _look(_singular(second, text), text), relation, ground)
    number, _, rest = subject.partition(" ")
    if number in _COUNTS:
        ending = "es" if rest.endswith("crosses") else "s"
        return several(_look(rest.removesuffix(ending), text), _COUNTS[number], ground)
    subject, _, place = subject.partition(" at the ")
    if place and place not in PLACES:
        raise ValueError(f"prompt: expected a place among {', '.join(PLACES)}, got {place!r}")
    return one(_look(_singular(subject, text), text), ground, place or "center")


def _look(words: str, text: str) -> Look:
    """Look of '[size] [style] colour shape'; size left out means medium, style left out means solid."""
    *adjectives, colour, shape = ["", "", *words.split()]
    size = next((word for word in adjectives if word in SIZES), "medium")
    style = next((word for word in adjectives if word in STYLES), "solid")
    left = [word for word in adjectives if word and word not in (size, style)]
    if left or colour not in COLOURS or shape not in SHAPES:
        raise ValueError(f"prompt: expected '[size] [style] colour shape', got {words!r} in {text!r}")
    return Look(shape, colour, style, size)


def _singular(words: str, text: str) -> str:
    article, _, rest = words.partition(" ")
    if article not in ("a", "an"):
        raise ValueError(f"prompt: expected an article before {words!r} in {text!r}")
    return rest


def _adjectives(item: Object) -> str:
    size = "" if item.size == "medium" else item.size
    style = "" if item.style == "solid" else item.style
    return " ".join(word for word in (size, style, item.colour) if word)


def _phrase(item: Object) -> str:
    return f"{_adjectives(item)} {item.shape}"


def plural(shape: str) -> str:
    """Crosses and boxes, discs and plusses."""
    return shape + ("es" if shape.endswith(("s", "x")) else "s")


def article(phrase: str) -> str:
    """The phrase behind a or an."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
