"""Captions for the evaluation only: training does not use their sentence templates."""

from dataclasses import dataclass
from random import Random

from .captions import NUMBERS, article
from .scenes import Scene
from .wordings import (
    COLOUR_WORDS,
    number_of,
    phrase,
    place_name,
    with_fixed_articles,
    with_random_case,
    without_articles,
)


@dataclass(frozen=True)
class Templates:
    """Sentence templates.

    Attributes:
        with_place: Sentences with subject, place and background.
        without_place: Sentences with subject and background.
        left_of: Phrases for an object `a` to the left of an object `b`.
        above: Phrases for an object `a` above an object `b`.
    """

    with_place: tuple[str, ...]
    without_place: tuple[str, ...]
    left_of: tuple[str, ...]
    above: tuple[str, ...]


FREE = Templates(
    with_place=(
        "there is {subject} {place} of a {background} picture",
        "{subject} {place} of the picture, everything else is {background}",
        "could you paint {subject} {place}, all on plain {background}",
        "{background} canvas. {subject} {place}.",
        "{place} we see {subject}; behind it only {background}",
        "put {subject} {place} of an image that is {background}",
    ),
    without_place=(
        "give me {subject} in front of {article_background} backdrop",
        "there is {subject} and behind it {article_background} background",
        "{background} canvas. {subject}.",
        "could you paint {subject}, all on plain {background}",
        "{article_background} poster showing {subject}",
        "let me see {subject} drawn on {background} paper",
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
"""Templates of the row "free wordings". The authors of the training captions knew them, but training uses none."""

FOREIGN = Templates(
    with_place=(
        "i would like {subject} {place}, the background should be {background}",
        "{subject} sits {place} against {background}",
        "{background} is the background and {subject} is {place}",
        "an otherwise {background} picture with {subject} {place}",
        "{place} there should be {subject}, background colour {background}",
    ),
    without_place=(
        "{subject} floating on {background}",
        "the background should be {background}, and on it {subject}",
        "please produce an image containing {subject} on {background}",
        "i would like {subject}, background colour {background}",
        "{subject} with nothing but {background} around",
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
"""Templates of the row "foreign wordings", written by another author after the checkpoint was trained.

They measure how well the model understands unfamiliar sentences. This holds only as long as nobody adds similar
sentences to the training captions.
"""


def free_caption(scene: Scene, rng: Random, templates: Templates = FREE) -> str:
    """Returns a caption from one of `templates`, in random case and sometimes without articles."""
    background = rng.choice(COLOUR_WORDS[scene.background])
    placed = scene.kind == "one" and scene.place != "center"
    template = rng.choice(templates.with_place if placed else templates.without_place)
    text = template.format(
        subject=_subject(scene, rng, templates),
        place=_place(scene, rng),
        background=background,
        article_background=article(background),
    )
    if rng.random() < 0.25:
        text = without_articles(text)
    return with_random_case(with_fixed_articles(text), rng, (0.5, 0.3, 0.08, 0.06, 0.06))


def _subject(scene: Scene, rng: Random, templates: Templates) -> str:
    """Returns the objects of a scene and, for two different ones, their relation."""
    first = scene.objects[0]
    if scene.kind == "one":
        return phrase(first, rng)
    if scene.kind == "count":
        number = number_of(scene, rng)
        return phrase(first, rng, f"exactly {number}" if number in NUMBERS.values() and rng.random() < 0.3 else number)
    a, b = (phrase(item, rng) for item in scene.objects)
    return rng.choice(templates.left_of if scene.relation == "left of" else templates.above).format(a=a, b=b)


def _place(scene: Scene, rng: Random) -> str:
    """Returns the place of a single object, such as "at the left" or "in the top left"."""
    name = place_name(scene.place, rng)
    return f"in the {name}" if " " in scene.place else f"at the {name}"
