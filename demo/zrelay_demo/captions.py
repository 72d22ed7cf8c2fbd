"""Canonical captions: one fixed wording per scene, and the parser that turns it back into a scene."""

import re

from .scenes import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    STYLES,
    Appearance,
    Object,
    Scene,
    equal_objects,
    one_object,
    two_objects,
)

NUMBERS = {2: "two", 3: "three", 4: "four"}
_COUNTS = {word: count for count, word in NUMBERS.items()}


def canonical(scene: Scene) -> str:
    """Returns the canonical caption of a scene, such as "a small red circle at the left on a blue background"."""
    first = scene.objects[0]
    background = f" on {article(scene.background)} background"
    if scene.kind == "one":
        place = "" if scene.place == "center" else f" at the {scene.place}"
        return article(_phrase(first)) + place + background
    if scene.kind == "count":
        return f"{NUMBERS[len(scene.objects)]} {_adjectives(first)} {plural(first.shape)}{background}"
    relation = " to the left of " if scene.relation == "left of" else " above "
    return article(_phrase(first)) + relation + article(_phrase(scene.objects[1])) + background


def parse(text: str) -> Scene:
    """Returns the scene of a canonical caption, without jitter. Raises ValueError for any other wording."""
    match = re.fullmatch(r"(.+) on an? (\w+) background", text)
    if match is None or match[2] not in COLOURS:
        raise ValueError(f"prompt: expected canonical wording '... on a <colour> background', got {text!r}")
    subject, background = match[1], match[2]
    for words, relation in ((" to the left of ", "left of"), (" above ", "above")):
        if words in subject:
            first, second = subject.split(words, 1)
            return two_objects(
                _appearance(_singular(first, text), text),
                _appearance(_singular(second, text), text),
                relation,
                background,
            )
    number, _, rest = subject.partition(" ")
    if number in _COUNTS:
        ending = "es" if rest.endswith("crosses") else "s"
        return equal_objects(_appearance(rest.removesuffix(ending), text), _COUNTS[number], background)
    subject, _, place = subject.partition(" at the ")
    if place and place not in PLACES:
        raise ValueError(f"prompt: expected a place among {', '.join(PLACES)}, got {place!r}")
    return one_object(_appearance(_singular(subject, text), text), background, place or "center")


def _appearance(words: str, text: str) -> Appearance:
    """Parses '[size] [style] colour shape'; the default size is medium, the default style solid."""
    *adjectives, colour, shape = ["", "", *words.split()]
    size = next((word for word in adjectives if word in SIZES), "medium")
    style = next((word for word in adjectives if word in STYLES), "solid")
    unknown = [word for word in adjectives if word and word not in (size, style)]
    if unknown or colour not in COLOURS or shape not in SHAPES:
        raise ValueError(f"prompt: expected '[size] [style] colour shape', got {words!r} in {text!r}")
    return Appearance(shape, colour, style, size)


def _singular(words: str, text: str) -> str:
    """Returns the words without their article. Raises ValueError if there is none."""
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
    """Returns the plural of a shape's name: "crosses", "boxes", "discs"."""
    return shape + ("es" if shape.endswith(("s", "x")) else "s")


def article(phrase: str) -> str:
    """Returns the phrase with "a" or "an" before it."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
