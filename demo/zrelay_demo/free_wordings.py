"""Wordings of the evaluation alone: sentences whose templates training never sees."""

from dataclasses import dataclass
from random import Random

from .captions import NUMBERS, article
from .wordings import COLOUR_WORDS, cased, number_of, phrase, place_name, repaired, without_articles
from .world import Scene


@dataclass(frozen=True)
class Templates:
    """Sentences around a thing, with its place and without, and how two things stand to each other."""

    with_place: tuple[str, ...]
    without_place: tuple[str, ...]
    left_of: tuple[str, ...]
    above: tuple[str, ...]


FREE = Templates(
    with_place=(
        "there is {thing} {place} of a {ground} picture",
        "{thing} {place} of the picture, everything else is {ground}",
        "could you paint {thing} {place}, all on plain {ground}",
        "{ground} canvas. {thing} {place}.",
        "{place} we see {thing}; behind it only {ground}",
        "put {thing} {place} of an image that is {ground}",
    ),
    without_place=(
        "give me {thing} in front of {article_ground} backdrop",
        "there is {thing} and behind it {article_ground} background",
        "{ground} canvas. {thing}.",
        "could you paint {thing}, all on plain {ground}",
        "{article_ground} poster showing {thing}",
        "let me see {thing} drawn on {ground} paper",
    ),
    left_of=(
        "on the left {a}, on the right {b}",
        "{a} and, to its right, {b}",
        "{b} with {a} to its left",
    ),
    above=(
        "at the top {a}, at the bottom {b}",
        "{a} and, below it, {b}",
        "{b} with {a} above it",
    ),
)
"""Training's grammar grew while these were known, though it never holds one of them."""

FOREIGN = Templates(
    with_place=(
        "i would like {thing} {place}, the background should be {ground}",
        "{thing} sits {place} against {ground}",
        "{ground} is the background and {thing} is {place}",
        "an otherwise {ground} picture with {thing} {place}",
        "{place} there should be {thing}, background colour {ground}",
    ),
    without_place=(
        "{thing} floating on {ground}",
        "the background should be {ground}, and on it {thing}",
        "please produce an image containing {thing} on {ground}",
        "i would like {thing}, background colour {ground}",
        "{thing} with nothing but {ground} around",
    ),
    left_of=(
        "{a} standing left of {b}",
        "{b} placed to the right of {a}",
        "to the right {b}, to the left {a}",
        "{a} followed on the right by {b}",
    ),
    above=(
        "{a} hovering above {b}",
        "{b} placed below {a}",
        "{b} lying underneath {a}",
        "{a} on top, then {b} below",
    ),
)
"""Written by another hand once the checkpoint was trained. They measure how far reading goes beyond what was prepared,
and do so only as long as nobody grows training's grammar towards them."""


def free(scene: Scene, rng: Random, templates: Templates = FREE) -> str:
    """A wording of none of training's templates, in any case, with or without articles."""
    ground = rng.choice(COLOUR_WORDS[scene.background])
    placed = scene.kind == "one" and scene.place != "center"
    template = rng.choice(templates.with_place if placed else templates.without_place)
    text = template.format(
        thing=_things(scene, rng, templates), place=_place(scene, rng), ground=ground, article_ground=article(ground)
    )
    if rng.random() < 0.25:
        text = without_articles(text)
    return cased(repaired(text), rng, (0.5, 0.3, 0.08, 0.06, 0.06))


def _things(scene: Scene, rng: Random, templates: Templates) -> str:
    first = scene.objects[0]
    if scene.kind == "one":
        return phrase(first, rng)
    if scene.kind == "count":
        number = number_of(scene, rng)
        return phrase(first, rng, f"exactly {number}" if number in NUMBERS.values() and rng.random() < 0.3 else number)
    a, b = (phrase(item, rng) for item in scene.objects)
    return rng.choice(templates.left_of if scene.relation == "left of" else templates.above).format(a=a, b=b)


def _place(scene: Scene, rng: Random) -> str:
    name = place_name(scene.place, rng)
    return f"in the {name}" if " " in scene.place else f"at the {name}"
