"""Random captions for training: synonyms, word orders and sentence templates in which people may describe a scene."""

import re
from collections.abc import Sequence
from random import Random

from .captions import NUMBERS, article, canonical, plural
from .scenes import COLOURS, SHAPES, Object, Scene

_CANONICAL_SHARE = 0.3
"""Share of captions with the canonical wording."""
_NO_BACKGROUND_SHARE = 0.03
"""Share of the other captions that omit the background."""
SIZE_WORDS = {
    "small": ("small", "small", "small", "tiny", "little"),
    "medium": ("", "", "", "", "", "medium", "medium-sized"),
    "large": ("large", "large", "large", "big", "big", "huge"),
}
"""Size -> its synonyms; repeated ones are drawn more often, and an empty one omits the size."""
STYLE_WORDS = {
    "solid": ("", "", "", "", "", "solid", "filled"),
    "striped": ("striped", "striped", "striped", "stripy"),
    "dotted": ("dotted", "dotted", "dotted", "spotted"),
    "outlined": ("outlined", "outlined", "outlined", "hollow"),
}
STYLE_TAILS = {"striped": "with stripes", "dotted": "with dots", "outlined": "in outline"}
"""Style -> a phrase after the noun that can replace the style's adjective."""
SHAPE_WORDS = {shape: (shape,) for shape in SHAPES} | {
    "circle": ("circle", "circle", "circle", "circle", "disc"),
    "square": ("square", "square", "square", "square", "box"),
    "diamond": ("diamond", "diamond", "diamond", "diamond", "rhombus"),
    "moon": ("moon", "moon", "moon", "moon", "crescent"),
    "cross": ("cross", "cross", "cross", "cross", "plus"),
}
COLOUR_WORDS = {colour: (colour,) for colour in COLOURS} | {
    "purple": ("purple", "purple", "purple", "purple", "violet"),
    "cyan": ("cyan", "cyan", "cyan", "cyan", "turquoise"),
}
_PREFIXES = (
    "draw ",
    "draw me ",
    "please draw ",
    "paint ",
    "show ",
    "show me ",
    "make ",
    "create ",
    "generate ",
    "i want ",
    "can you draw ",
    "picture: ",
    "a picture of ",
    "an image of ",
    "a drawing of ",
    "an illustration of ",
)
_SUFFIXES = (", please", " please", ", simple", ", flat colours", "!")
_FILLERS = (
    "plain bright simple flat clean nice pretty just only really exactly single then there is we see that whole some "
    "very behind it image picture page wall scene hello ok maybe also like this style of art drawn shown"
)
"""Words without meaning for the image, inserted at random; the model learns to ignore words that it does not know."""
_BACKGROUNDS_AFTER = (
    " on a {} background",
    " on a {} background",
    " on a {} background",
    " on {}",
    " on {}",
    " against a {} background",
    " against a {} wall",
    " over a {} backdrop",
    " in front of a {} wall",
    " in a {} image",
    " on a {} page",
    " with {} behind it",
    ", the rest is {}",
    ", everything around it {}",
    " with a {} background",
    ", {} background",
    ", {} background",
    ", on a {} background",
    ", the background is {}",
    "; background: {}",
    ", background {}",
    ", all else is {}",
    ", with only {} around",
    " in a {} picture",
    " on a sheet of {} paper",
    " on {} canvas",
    " on a {} poster",
    ". The background is {}",
    ". {} background",
)
"""Templates for the background after the subject."""
_BACKGROUNDS_BEFORE = (
    "on a {} background, ",
    "on a {} background: ",
    "on {}, ",
    "{} background, ",
    "{} background with ",
    "a {} background with ",
    "background {}, ",
    "a {} page with ",
    "a {} screen showing ",
    "in a {} image ",
    "{} wall, ",
    "{} page: ",
    "a {} canvas with ",
    "{} paper, ",
    "{} poster with ",
    "a {} picture showing ",
    "background is {}. ",
    "{}. ",
)
"""Templates for the background before the subject."""


def caption(scene: Scene, rng: Random) -> str:
    """Returns a random training caption of a scene."""
    if rng.random() < _CANONICAL_SHARE:
        return with_random_case(canonical(scene), rng)
    subject, place = subject_of(scene, rng), place_of(scene, rng)
    background = rng.choice(COLOUR_WORDS[scene.background])
    if rng.random() < _NO_BACKGROUND_SHARE:
        text = subject + place
    elif rng.random() < 0.3:
        text = rng.choice(_BACKGROUNDS_BEFORE).format(background) + subject + place
    else:
        after = rng.choice(_BACKGROUNDS_AFTER).format(background)
        if place and rng.random() < 0.2:
            text = f"{place.lstrip(' ,')}, {subject}{after}"
        elif place and rng.random() < 0.2:
            text = f"{subject}{after}, {place.lstrip(' ,')}"
        else:
            text = subject + place + after
    if rng.random() < 0.3:
        text = rng.choice(_PREFIXES) + text
    if rng.random() < 0.08:
        text += rng.choice(_SUFFIXES)
    if rng.random() < 0.2:
        text = without_articles(text)
    if rng.random() < 0.2:
        text = _with_fillers(text, rng)
    if rng.random() < 0.1:
        text = _with_commas(text, rng)
    return with_random_case(with_fixed_articles(text), rng)


def phrase(item: Object, rng: Random, number: str = "") -> str:
    """Returns a noun phrase for an object, with random synonyms and word order: size, style, colour and shape.

    It starts with an article and is in the singular. If `number` is given, it starts with it and is in the plural.
    """
    noun = rng.choice(SHAPE_WORDS[item.shape])
    size, style = rng.choice(SIZE_WORDS[item.size]), rng.choice(STYLE_WORDS[item.style])
    tail = ""
    if item.style in STYLE_TAILS and rng.random() < 0.15:
        style, tail = "", f" {STYLE_TAILS[item.style]}"
    words = [size, style, rng.choice(COLOUR_WORDS[item.colour])]
    if rng.random() < 0.2:
        rng.shuffle(words)
    joint = ", " if rng.random() < 0.06 else " "
    adjectives = joint.join(word for word in words if word)
    if number:
        return f"{number} {adjectives} {plural(noun)}{tail}"
    return article(f"{adjectives} {noun}{tail}")


def subject_of(scene: Scene, rng: Random) -> str:
    """Returns the objects of a scene and, for two different ones, their relation."""
    first = scene.objects[0]
    if scene.kind == "one":
        return phrase(first, rng)
    if scene.kind == "count":
        return phrase(first, rng, number_of(scene, rng))
    a, b = (phrase(item, rng) for item in scene.objects)
    if scene.relation == "left of":
        forms: tuple[str, ...] = (
            f"{a} to the left of {b}",
            f"{a} to the left of {b}",
            f"{a} left of {b}",
            f"{a} on the left and {b} on the right",
            f"{a} next to {b}",
            f"{a} and {b}",
            f"{b} to the right of {a}",
            f"{b} right of {a}",
            f"{a} with {b} to its right",
            f"{a} and {b} to the right of it",
            f"{b} and to the left of it {a}",
            f"on the left is {a} and on the right is {b}",
            f"left {a}, right {b}",
            f"on the right {b} and on the left {a}",
            f"{b} on the right, {a} on the left",
            f"to the left of {b} there is {a}",
            f"to the right of {a} stands {b}",
            f"{b} and on its left {a}",
            f"{b}, {a} on its left",
            f"{a}, on its right {b}",
            f"{b} has {a} to its left",
            f"{a} has {b} to its right",
            f"{b} with {a} left of it",
            f"{b} that has {a} at its left side",
            f"{b} beside {a}, which is on the left",
            f"{a} beside {b}, which is on the right",
            f"{b}; left of it {a}",
            f"{a}; right of it {b}",
        )
    else:
        forms = (
            f"{a} above {b}",
            f"{a} above {b}",
            f"{a} over {b}",
            f"{a} on top of {b}",
            f"{b} below {a}",
            f"{b} under {a}",
            f"{a} at the top and {b} at the bottom",
            f"{a} with {b} below it",
            f"{a} and {b} under it",
            f"{b} and above it {a}",
            f"at the top is {a} and at the bottom is {b}",
            f"top {a}, bottom {b}",
            f"at the bottom {b} and at the top {a}",
            f"{b} at the bottom, {a} at the top",
            f"below {a} there is {b}",
            f"above {b} there is {a}",
            f"{b} beneath {a}",
            f"{b} and over it {a}",
            f"{b}, {a} on top of it",
            f"{a}, under it {b}",
            f"{b} has {a} over it",
            f"{a} has {b} beneath it",
            f"{a} with {b} underneath",
            f"{b} with {a} on its top",
            f"{b} that has {a} higher up",
            f"{a} stands over {b}, which is below",
            f"{b}; above it {a}",
            f"{a}; below it {b}",
        )
    return rng.choice(forms)


def number_of(scene: Scene, rng: Random) -> str:
    """Returns the number of objects as a word, in digits, or as "a pair of"."""
    count = len(scene.objects)
    return rng.choice([NUMBERS[count]] * 3 + [str(count)] + (["a pair of"] if count == 2 else []))


def place_of(scene: Scene, rng: Random) -> str:
    """Returns the place of a single object, preceded by a space or comma.

    It is empty for scenes with several objects, and usually for the centre.
    """
    if scene.kind != "one":
        return ""
    if scene.place == "center":
        return rng.choice(("", "", "", "", " in the center", " in the middle", " in the centre", ", centered"))
    name = place_name(scene.place, rng)
    if " " in scene.place:
        return rng.choice((f" at the {name}", f" in the {name}", f" in the {name} corner", f", {name}"))
    return rng.choice((f" at the {name}", f" on the {name}", f" on the {name} side", f" near the {name} edge"))


def place_name(place: str, rng: Random) -> str:
    """Returns the name of a place; a corner may also be called "top-left" or "upper left"."""
    vertical, _, side = place.partition(" ")
    if not side or rng.random() < 0.6:
        return place
    return rng.choice((f"{vertical}-{side}", f"{'upper' if vertical == 'top' else 'lower'} {side}"))


def with_random_case(text: str, rng: Random, shares: Sequence[float] = (0.66, 0.16, 0.06, 0.06, 0.06)) -> str:
    """Returns the text in random case, sometimes with a full stop.

    Args:
        text: The text.
        rng: Source of randomness.
        shares: Weights of: unchanged, capital first letter, all capitals, every word capitalised, some in capitals.
    """
    way = rng.choices(("", "first", "all", "each", "some"), shares)[0]
    if way == "first":
        text = text[0].upper() + text[1:]
    elif way == "all":
        text = text.upper()
    elif way == "each":
        text = text.title()
    elif way == "some":
        text = " ".join(word.upper() if rng.random() < 0.25 else word for word in text.split(" "))
    return text + "." if text[-1].isalpha() and rng.random() < 0.12 else text


def without_articles(text: str) -> str:
    """Returns the text without articles; "a pair of" keeps its article."""
    return re.sub(r"\b(an?|the) (?!pair)", "", text)


def _with_fillers(text: str, rng: Random) -> str:
    """Returns the text with one or two filler words at random positions."""
    words = text.split(" ")
    for _ in range(rng.choice((1, 1, 2))):
        words.insert(rng.randrange(len(words)), rng.choice(_FILLERS.split()))
    return " ".join(words)


def _with_commas(text: str, rng: Random) -> str:
    """Returns the text with one or two commas at random positions."""
    words = text.split(" ")
    for _ in range(rng.choice((1, 2))):
        at = rng.randrange(len(words))
        if words[at][-1].isalnum():
            words[at] += ","
    return " ".join(words)


def with_fixed_articles(text: str) -> str:
    """Returns the text with "an" in place of "a" before "orange" and "outlined"."""
    return re.sub(r"\ba (?=orange\b|outlined\b)", "an ", text)
