"""Wordings of the evaluation alone: sentences whose templates training never sees."""

from random import Random

from .captions import NUMBERS, article
from .wordings import COLOUR_WORDS, cased, number_of, phrase, place_name, repaired, without_articles
from .world import Scene

_WITH_PLACE = (
    "there is {thing} {place} of a {ground} picture",
    "{thing} {place} of the picture, everything else is {ground}",
    "could you paint {thing} {place}, all on plain {ground}",
    "{ground} canvas. {thing} {place}.",
    "{place} we see {thing}; behind it only {ground}",
    "put {thing} {place} of an image that is {ground}",
)
_WITHOUT_PLACE = (
    "give me {thing} in front of {article_ground} backdrop",
    "there is {thing} and behind it {article_ground} background",
    "{ground} canvas. {thing}.",
    "could you paint {thing}, all on plain {ground}",
    "{article_ground} poster showing {thing}",
    "let me see {thing} drawn on {ground} paper",
)
_LEFT_OF = (
    "on the left {a}, on the right {b}",
    "{a} and, to its right, {b}",
    "{b} with {a} to its left",
)
_ABOVE = (
    "at the top {a}, at the bottom {b}",
    "{a} and, below it, {b}",
    "{b} with {a} above it",
)


def free(scene: Scene, rng: Random) -> str:
    """A wording of none of training's templates, in any case, with or without articles."""
    ground = rng.choice(COLOUR_WORDS[scene.background])
    placed = scene.kind == "one" and scene.place != "center"
    template = rng.choice(_WITH_PLACE if placed else _WITHOUT_PLACE)
    text = template.format(
        thing=_things(scene, rng), place=_place(scene, rng), ground=ground, article_ground=article(ground)
    )
    if rng.random() < 0.25:
        text = without_articles(text)
    return cased(repaired(text), rng, (0.5, 0.3, 0.08, 0.06, 0.06))


def _things(scene: Scene, rng: Random) -> str:
    first = scene.objects[0]
    if scene.kind == "one":
        return phrase(first, rng)
    if scene.kind == "count":
        number = number_of(scene, rng)
        return phrase(first, rng, f"exactly {number}" if number in NUMBERS.values() and rng.random() < 0.3 else number)
    a, b = (phrase(item, rng) for item in scene.objects)
    return rng.choice(_LEFT_OF if scene.relation == "left of" else _ABOVE).format(a=a, b=b)


def _place(scene: Scene, rng: Random) -> str:
    name = place_name(scene.place, rng)
    return f"in the {name}" if " " in scene.place else f"at the {name}"
