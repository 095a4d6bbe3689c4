"""Layers of settings on a small model that has every kind of section."""

from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from curation.base.config import Config
from curation.base.merge import combine, merge


class _Shape(Config):
    alternatives: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"area", "share"}),)

    area: float | None = None
    share: float | None = None


class Circle(_Shape):
    kind: Literal["circle"] = "circle"
    radius: float = 1


class Square(_Shape):
    kind: Literal["square"] = "square"
    side: float = 1
    inner: tuple["Shape", ...] = ()


Shape = Annotated[Circle | Square, Field(discriminator="kind")]


class Frame(Config):
    shape: Shape = Circle()
    hole: Shape | None = None


class Picture(Config):
    number: int = 0
    frame: Frame = Frame()
    spare: Frame | None = None
    shapes: tuple[Shape, ...] = ()
    named: dict[str, Frame] = Field(default={})


def layered(*layers: dict[str, Any]) -> Picture:
    settings: dict[str, Any] = {}
    for layer in layers:
        settings = merge(settings, layer, Picture)
    return Picture.model_validate(settings)


def test_a_later_layer_wins_key_by_key() -> None:
    picture = layered({"number": 1, "frame": {"shape": {"radius": 2, "area": 3}}}, {"frame": {"shape": {"radius": 4}}})
    assert picture == Picture(number=1, frame=Frame(shape=Circle(radius=4, area=3)))
    assert layered({"number": 1}, {"number": 2}).number == 2


@pytest.mark.parametrize("named", [{}, {"kind": "circle"}])
def test_another_variant_keeps_only_what_all_variants_inherit(named: dict[str, str]) -> None:
    file = {"frame": {"shape": {"radius": 2, "area": 3, **named}}, "spare": {"hole": {"kind": "square", "side": 5}}}
    words = {"frame": {"shape": {"kind": "square"}}, "spare": {"hole": {"kind": "circle", "radius": 7}}}
    picture = layered(file, words)
    assert picture == Picture(frame=Frame(shape=Square(area=3)), spare=Frame(hole=Circle(radius=7)))


def test_sections_under_names_are_merged_name_by_name() -> None:
    picture = layered(
        {"named": {"a": {"shape": {"radius": 2}}, "b": {}}},
        {"named": {"a": {"shape": {"kind": "square"}}, "b": {"shape": {"radius": 3}}}},
    )
    assert picture.named == {"a": Frame(shape=Square()), "b": Frame(shape=Circle(radius=3))}


def test_a_list_takes_the_place_of_a_list() -> None:
    file = {"shapes": [{"kind": "circle", "radius": 2}, {"kind": "circle"}]}
    inner = {"kind": "square", "inner": [{"kind": "circle"}]}
    assert layered(file, {"shapes": [inner]}).shapes == (Square(inner=(Circle(),)),)
    assert layered(file, {"shapes": [{"kind": "square", "inner": None}]}).shapes == (Square(),)


def test_a_setting_takes_the_place_of_its_alternative_in_an_earlier_layer() -> None:
    file = {"frame": {"shape": {"area": 3, "share": None}, "hole": {"kind": "square", "area": 3}}}
    picture = layered(file, {"frame": {"shape": {"share": 0.5}, "hole": {"share": 0.5}}})
    assert picture.frame == Frame(shape=Circle(share=0.5), hole=Square(share=0.5))
    assert layered(file, {"frame": {"shape": {"share": None}}}).frame.shape == Circle(area=3)


def test_alternatives_of_one_layer_stay_side_by_side() -> None:
    both = {"frame": {"shape": {"area": 3, "share": 0.5}}}
    assert layered({"frame": {"shape": {"radius": 2}}}, both).frame.shape == Circle(radius=2, area=3, share=0.5)
    halves = {"frame": {"shape": {"area": 3}}}, {"frame": {"shape": {"share": 0.5}}}
    assert combine(*halves, Picture) == both


def test_null_brings_the_defaults_of_a_section_back() -> None:
    file = {"frame": {"shape": {"kind": "square"}}, "spare": {}, "shapes": [{"kind": "circle"}], "named": {"a": {}}}
    assert layered(file, {"frame": None, "shapes": None, "named": None}) == Picture(spare=Frame())
    assert layered(file, {"spare": None}).spare is None
    assert layered(file, {"frame": {"shape": None}}).frame == Frame()
    with pytest.raises(ValidationError):
        layered(file, {"number": None})


def test_words_after_null_start_from_the_defaults() -> None:
    words: dict[str, Any] = {}
    for word in ({"frame": None}, {"frame": {"hole": {"kind": "circle"}}}, {"frame": {"hole": {"radius": 2}}}):
        words = combine(words, word, Picture)
    assert layered({"frame": {"shape": {"kind": "square"}}}, words) == Picture(frame=Frame(hole=Circle(radius=2)))


def test_of_two_variants_in_one_layer_the_later_starts_afresh() -> None:
    words = combine({"frame": {"shape": {"kind": "square", "side": 2}}}, {"frame": {"shape": {"kind": "circle"}}}, Picture)
    assert words == {"frame": {"shape": {"kind": "circle"}}}
    unnamed = combine({"frame": {"shape": {"side": 2}}}, {"frame": {"shape": {"kind": "square"}}}, Picture)
    assert layered(unnamed).frame.shape == Square(side=2)


def test_keys_that_no_model_knows_reach_the_validation() -> None:
    assert merge({"nmber": {"a": 1}}, {"nmber": {"b": 2}, "frame": 3}, Picture) == {"nmber": {"a": 1, "b": 2}, "frame": 3}
    with pytest.raises(ValidationError, match="'triangle'"):
        layered({"frame": {"shape": {"kind": "circle", "radius": 1}}}, {"frame": {"shape": {"kind": "triangle"}}})
