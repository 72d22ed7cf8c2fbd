"""The checker agrees with the renderer, and sees what is wrong."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from PIL import Image

from tests.helpers.jobs import PROMPT
from zrelay_demo.checker import check, check_prompt
from zrelay_demo.regions import filled, regions
from zrelay_demo.render import render
from zrelay_demo.scenes import Appearance, equal_objects, one_object, sample


def test_the_renderer_is_right() -> None:
    rng = Random("checker test")
    scenes = [sample(rng, unseen=True) for _ in range(150)]
    right = sum(check(render(scene), scene).all_right for scene in scenes)
    assert right / len(scenes) >= 0.985


def test_judge_takes_a_prompt() -> None:
    assert check_prompt(render(one_object(Appearance("circle", "red", "solid", "small"), "blue")), PROMPT).all_right


@pytest.mark.parametrize(
    ("appearance", "background", "wrong"),
    [
        (Appearance("square", "red", "solid", "small"), "blue", {"shape"}),
        (Appearance("circle", "orange", "solid", "small"), "blue", {"colour"}),
        (Appearance("circle", "red", "striped", "small"), "blue", {"style"}),
        (Appearance("circle", "red", "outlined", "small"), "blue", {"style"}),
        (Appearance("circle", "red", "solid", "medium"), "blue", {"size"}),
        (Appearance("circle", "red", "solid", "small"), "purple", {"background"}),
    ],
)
def test_one_wrong_attribute_is_found(appearance: Appearance, background: str, wrong: set[str]) -> None:
    result = check_prompt(render(one_object(appearance, background)), PROMPT)
    assert {name for name, right in vars(result).items() if not right} == wrong


def test_a_wrong_place_is_found() -> None:
    assert not check_prompt(
        render(one_object(Appearance("circle", "red", "solid", "small"), "blue", "left")), PROMPT
    ).place


def test_a_second_object_is_found() -> None:
    assert not check_prompt(
        render(equal_objects(Appearance("circle", "red", "solid", "small"), 2, "blue")), PROMPT
    ).count


def test_an_empty_picture_is_wrong() -> None:
    result = check_prompt(Image.new("RGB", (128, 128), (40, 80, 220)), PROMPT)
    assert result.background
    assert not any((result.count, result.colour, result.shape, result.style, result.place, result.size))


def test_jitter_plays_no_part() -> None:
    scene = sample(Random(7))
    moved = replace(scene, objects=tuple(replace(item, cx=item.cx + 1) for item in scene.objects))
    assert check(render(scene), scene) == check(render(scene), moved)


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 128 x 128"):
        check_prompt(Image.new("RGB", (64, 64)), PROMPT)


def test_regions_and_holes() -> None:
    mask = np.zeros((9, 12), dtype=bool)
    mask[1:6, 1:6] = True
    mask[2:5, 2:5] = False
    mask[1:8, 7] = mask[7, 7:11] = mask[1:8, 10] = True
    assert sorted(int(region.sum()) for region in regions(mask, 1)) == [16, 16]
    assert int(filled(mask).sum()) == 25 + 16
    assert len(regions(mask, 17)) == 0
