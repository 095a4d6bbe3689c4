from typing import Annotated, Literal

from pydantic import Field

from curation.base.config import Config
from curation.base.sections import Section, default_section, describe, section_of
from curation.selectors.config import BalancedConfig, RandomConfig


class Left(Config):
    type: Literal["left"] = "left"
    turns: int = 1


class Right(Config):
    type: Literal["right"] = "right"


class Way(Config):
    steps: int | tuple[Left, ...] = 1
    fork: Left | Right = Field(default=Left(), discriminator="type")
    later: Annotated[Left | Right, Field(discriminator="type")] | None = None
    by_name: dict[str, Right] = Field(default={})
    lengths: tuple[int, ...] = ()


def test_a_field_is_a_section_of_its_models() -> None:
    assert section_of(Way, "steps") == Section(items=Section((Left,)))
    assert section_of(Way, "fork") == Section((Left, Right), tag="type")
    assert section_of(Way, "later") == Section((Left, Right), tag="type", allows_none=True)
    assert section_of(Way, "by_name") == Section(items=Section((Right,)))
    assert section_of(Way, "lengths") == Section()
    assert default_section(Way.model_fields["fork"]) == Left()


def test_a_quoted_name_is_that_of_the_module() -> None:
    items = section_of(BalancedConfig, "after").items
    assert items is not None
    assert items.tag == "strategy"
    assert {BalancedConfig, RandomConfig} < set(items.models)


def test_settings_say_which_variant_they_are_for() -> None:
    fork = section_of(Way, "fork")
    assert fork.variants({"type": "right"}) == (Right,)
    assert fork.variants({}) == (Left, Right)
    assert fork.variants({"type": "up"}) == ()
    assert fork.field({"type": "up"}, "turns") == (Section(), None)
    assert describe(Way).field({}, "fork") == (fork, Left())
