"""Words for scenes: the canonical wording, the training grammar, and the way back from canonical words."""

import re
from random import Random

from .world import COLOURS, PLACES, SHAPES, SIZES, STYLES, Look, Object, Scene, one, pair, several

_NUMBERS = {2: "two", 3: "three", 4: "four"}
_COUNTS = {word: count for count, word in _NUMBERS.items()}
_SYNONYMS = {
    "small": ("small", "small", "small", "small", "tiny", "little"),
    "medium": ("", "", "", "", "", "medium"),
    "large": ("large", "large", "large", "big", "big", "huge"),
}
_CANONICAL_SHARE = 0.4


def canonical(scene: Scene) -> str:
    """The one wording that the evaluation uses."""
    first = scene.objects[0]
    ground = f" on {_article(scene.background)} background"
    if scene.kind == "one":
        place = "" if scene.place == "center" else f" at the {scene.place}"
        return _article(_phrase(first)) + place + ground
    if scene.kind == "count":
        return f"{_NUMBERS[len(scene.objects)]} {_adjectives(first)} {_plural(first.shape)}{ground}"
    relation = " to the left of " if scene.relation == "left of" else " above "
    return _article(_phrase(first)) + relation + _article(_phrase(scene.objects[1])) + ground


def caption(scene: Scene, rng: Random) -> str:
    """A wording for training: often the canonical one, else a random one of the grammar."""
    if rng.random() < _CANONICAL_SHARE:
        return canonical(scene)
    subject = _subject(scene, rng)
    ground = scene.background
    text = rng.choice(
        [f"{subject} on {_article(ground)} background"] * 4
        + [f"{subject}, {ground} background", f"{_article(ground)} background with {subject}", f"{subject} on {ground}"]
    )
    if rng.random() < 0.1:
        text = rng.choice(["an image of ", "a picture of ", "draw "]) + text
    if rng.random() < 0.1:
        text = re.sub(r"\ban? ", "", text)
    if rng.random() < 0.15:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.15 else text


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


def _free_phrase(item: Object, rng: Random, noun: str) -> str:
    """Size, style, colour and noun, with synonyms and sometimes size and style swapped."""
    style = item.style if item.style != "solid" else rng.choice([""] * 6 + ["solid"])
    words = [rng.choice(_SYNONYMS[item.size]), style, item.colour, noun]
    if rng.random() < 0.15:
        words[0], words[1] = words[1], words[0]
    return " ".join(word for word in words if word)


def _subject(scene: Scene, rng: Random) -> str:
    first = scene.objects[0]
    if scene.kind == "one":
        return _article(_free_phrase(first, rng, first.shape)) + _free_place(scene.place, rng)
    if scene.kind == "count":
        count = len(scene.objects)
        number = rng.choice([_NUMBERS[count]] * 4 + [str(count)])
        return f"{number} {_free_phrase(first, rng, _plural(first.shape))}"
    second = scene.objects[1]
    a, b = (_article(_free_phrase(item, rng, item.shape)) for item in (first, second))
    if scene.relation == "left of":
        forms = [
            f"{a} to the left of {b}",
            f"{a} on the left and {b} on the right",
            f"{a} next to {b}",
            f"{a} and {b}",
            f"{b} to the right of {a}",
        ]
    else:
        forms = [f"{a} above {b}", f"{b} below {a}", f"{a} on top of {b}", f"{a} at the top and {b} at the bottom"]
    return rng.choice(forms)


def _free_place(place: str, rng: Random) -> str:
    if place == "center":
        return rng.choice(["", "", "", " in the center", " in the middle"])
    last = f" in the {place} corner" if " " in place else f" on the {place} side"
    return rng.choice([f" at the {place}", f" on the {place}", last])


def _plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
