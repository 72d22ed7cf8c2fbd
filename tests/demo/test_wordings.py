"""Wordings: what training sees, what only the evaluation sees, and that neither loses a word that matters."""

import re
from random import Random

import pytest

from zrelay_demo.free_wordings import FOREIGN, FREE, Templates, free_caption
from zrelay_demo.scenes import COLOURS, SHAPES, STYLES, Scene, sample
from zrelay_demo.wordings import COLOUR_WORDS, SHAPE_WORDS, caption, with_random_case, without_articles


def _names(text: str, scene: Scene) -> bool:
    """Whether every object's colour and shape is there, in one of its words."""
    words = text.lower()
    return all(
        any(word in words for word in COLOUR_WORDS[item.colour]) and any(w in words for w in SHAPE_WORDS[item.shape])
        for item in scene.objects
    )


def _skeleton(text: str) -> str:
    """The text without what scenes differ in: case, colours, shapes, styles, sizes, articles and marks."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    known = {w for some in (*COLOUR_WORDS.values(), *SHAPE_WORDS.values()) for word in some for w in word.split()}
    dull = known | {f"{w}s" for w in known} | {*STYLES, "a", "an", "the", "big", "large", "small", "tiny", "little"}
    return " ".join(word for word in words if word not in dull)


def test_captions_name_every_object() -> None:
    rng = Random(1)
    for _ in range(1000):
        scene = sample(rng)
        text = caption(scene, rng)
        assert _names(text, scene), text


def test_most_captions_name_the_background() -> None:
    rng = Random(2)
    scenes = [sample(rng) for _ in range(1000)]
    named = [any(w in caption(s, rng).lower() for w in COLOUR_WORDS[s.background]) for s in scenes]
    assert 0.94 < sum(named) / len(named) < 1.0  # the rest leaves it to the seed


@pytest.mark.parametrize("templates", [FREE, FOREIGN], ids=["free", "foreign"])
def test_free_wordings_name_everything(templates: Templates) -> None:
    rng = Random(3)
    for _ in range(1000):
        scene = sample(rng, unseen=True)
        text = free_caption(scene, rng, templates)
        assert _names(text, scene), text
        assert any(word in text.lower() for word in COLOUR_WORDS[scene.background]), text


@pytest.mark.parametrize("templates", [FREE, FOREIGN], ids=["free", "foreign"])
def test_training_never_uses_a_template_of_the_evaluation(templates: Templates) -> None:
    rng = Random(4)
    trained = {_skeleton(caption(sample(rng), rng)) for _ in range(20000)}
    asked = {_skeleton(free_caption(sample(rng, unseen=True), rng, templates)) for _ in range(2000)}
    assert not trained & asked


def test_every_colour_and_shape_has_words() -> None:
    assert set(COLOUR_WORDS) == set(COLOURS)
    assert set(SHAPE_WORDS) == set(SHAPES)


def test_case_and_articles() -> None:
    assert with_random_case("a red star", Random(0), (0, 0, 1, 0, 0)).rstrip(".") == "A RED STAR"
    assert without_articles("a red star on an orange background") == "red star on orange background"
