"""The world: held-out triples, nominal places, JSON, and the words for scenes."""

from random import Random

import pytest

from zrelay_demo.captions import canonical, parse
from zrelay_demo.outlines import box
from zrelay_demo.scenes import (
    COLOURS,
    RESOLUTIONS,
    SHAPES,
    Appearance,
    Resolution,
    Scene,
    held_out,
    nominal,
    one_object,
    sample,
)


def test_about_one_triple_in_eight_is_held_out() -> None:
    triples = [(s, c, b) for s in SHAPES for c in COLOURS for b in COLOURS if c != b]
    share = sum(held_out(*triple) for triple in triples) / len(triples)
    assert 0.10 < share < 0.15


def test_training_never_shows_a_held_out_triple() -> None:
    rng = Random(1)
    for _ in range(2000):
        scene = sample(rng)
        assert not any(held_out(item.shape, item.colour, scene.background) for item in scene.objects)


def test_evaluation_always_asks_for_a_held_out_triple() -> None:
    rng = Random(2)
    for _ in range(500):
        scene = sample(rng, unseen=True)
        assert held_out(scene.objects[0].shape, scene.objects[0].colour, scene.background)


def test_canonical_words_give_the_scene_back() -> None:
    rng = Random(3)
    for _ in range(1000):
        scene = sample(rng)
        assert parse(canonical(scene)) == nominal(scene)


def test_json_gives_the_scene_back() -> None:
    rng = Random(4)
    for _ in range(50):
        scene = sample(rng)
        assert Scene.from_json(scene.to_json()) == scene


def test_parse_of_one_object() -> None:
    expected = one_object(Appearance("circle", "red", "solid", "small"), "blue")
    assert parse("a small red circle on a blue background") == expected
    assert parse("an outlined white star at the top left on a black background").place == "top left"


@pytest.mark.parametrize(
    "prompt",
    [
        "a red fox",
        "red circle on a blue background",
        "a red fox on a blue background",
        "a red circle on a grey background",
    ],
)
def test_parse_refuses_other_words(prompt: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse(prompt)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_every_object_stands_whole_in_its_frame(resolution: Resolution) -> None:
    rng = Random(5)
    for _ in range(500):
        scene = sample(rng, resolution=resolution)
        for item in scene.objects:
            left, top, right, bottom = box(item.shape, item.cx, item.cy, item.r)
            assert left >= 0 and top >= 0 and right <= scene.width and bottom <= scene.height


def test_things_grow_with_the_shorter_side() -> None:
    appearance = Appearance("circle", "red")
    assert (
        one_object(appearance, "blue", resolution=(256, 256)).objects[0].r
        == 2 * one_object(appearance, "blue").objects[0].r
    )
    assert (
        one_object(appearance, "blue", resolution=(192, 128)).objects[0].r
        == one_object(appearance, "blue").objects[0].r
    )
