"""What of a configuration enters a fingerprint."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from curation.base.config import Config


class Network(Config):
    operational = frozenset({"workers"})

    type: Literal["network"] = "network"
    depth: int = 2
    workers: int = 1


class Pixels(Config):
    type: Literal["pixels"] = "pixels"
    depth: int = 2


class Optimizer(Config):
    operational = frozenset({"fused"})

    rate: float = 1
    momentum: float | None = None
    fused: bool = False


Encoder = Annotated[Network | Pixels, Field(discriminator="type")]


class Training(Config):
    operational = frozenset({"ranks", "log"})

    path: Path
    first: Encoder
    encoder: Encoder = Network()
    deep: Encoder = Network(depth=5)
    teacher: Encoder | None = None
    optimizer: Optimizer = Optimizer()
    warmup: Optimizer | None = None
    before: tuple[Encoder, ...] = ()
    stages: tuple[Optimizer, ...] = (Optimizer(),)
    heads: dict[str, Optimizer] = Field(default={})
    epochs: float = 100
    levels: tuple[int, ...] = (2, 1)
    ranks: int | None = None
    log: Optimizer = Optimizer()


SMALL = Training(path=Path("a"), first=Pixels())
REQUIRED = {"path": "a", "first": {"type": "pixels"}}


def fields(**settings: Any) -> dict[str, object]:
    """The fingerprint fields that come with `settings`, without those that are always there."""
    result = SMALL.model_copy(update=settings).fingerprint_fields()
    assert {name: result.pop(name) for name in REQUIRED} == REQUIRED
    assert json.loads(json.dumps(result)) == result
    return result


def test_defaults_do_not_show_and_required_settings_do() -> None:
    assert SMALL.fingerprint_fields() == REQUIRED
    assert fields(epochs=100.0, levels=(2, 1)) == {}
    assert fields(epochs=3, levels=(5,)) == {"epochs": 3, "levels": [5]}


def test_a_setting_added_later_leaves_the_fields_equal() -> None:
    class Later(Optimizer):
        nesterov: bool = False
        schedule: Encoder = Network()

    class Holder(Config):
        optimizer: Optimizer = Optimizer()
        stages: tuple[Optimizer, ...] = ()

    class LaterHolder(Config):
        optimizer: Later = Later()
        stages: tuple[Later, ...] = ()
        notes: str = ""

    settings: dict[str, Any] = {"optimizer": {"rate": 3}, "stages": [{"rate": 2}, {}]}
    before, after = Holder.model_validate(settings), LaterHolder.model_validate(settings)
    assert before.fingerprint_fields() == after.fingerprint_fields() == settings


def test_a_nested_section_shows_how_it_differs() -> None:
    assert fields(optimizer=Optimizer(rate=2)) == {"optimizer": {"rate": 2}}
    assert fields(optimizer=Optimizer(rate=1.0)) == {}


def test_a_variant_shows_unless_it_is_the_default_one() -> None:
    assert fields(encoder=Network(depth=3)) == {"encoder": {"depth": 3}}
    assert fields(encoder=Pixels()) == {"encoder": {"type": "pixels"}}
    assert fields(teacher=Network()) == {"teacher": {"type": "network"}}
    assert SMALL.model_copy(update={"first": Network()}).fingerprint_fields()["first"] == {"type": "network"}


def test_a_default_that_is_not_plain_is_what_counts() -> None:
    assert fields(deep=Network(depth=5)) == {}
    assert fields(deep=Network()) == {"deep": {}}
    assert fields(deep=Pixels()) == {"deep": {"type": "pixels"}}


def test_an_optional_section_of_plain_defaults_differs_from_none() -> None:
    assert fields(warmup=Optimizer()) == {"warmup": {}}


def test_a_value_inside_a_tuple_shows() -> None:
    assert fields(before=(Pixels(), Network(depth=3))) == {"before": [{"type": "pixels"}, {"type": "network", "depth": 3}]}
    assert fields(stages=(Optimizer(momentum=0.5),)) == {"stages": [{"momentum": 0.5}]}
    assert fields(stages=()) == {"stages": []}
    assert fields(heads={"a": Optimizer(rate=2, fused=True)}) == {"heads": {"a": {"rate": 2}}}


def test_operational_settings_never_show() -> None:
    fused = Optimizer(fused=True)
    assert fields(ranks=4, log=Optimizer(rate=9), optimizer=fused, stages=(fused,), encoder=Network(workers=3)) == {}
    assert fields(warmup=fused, before=(Network(workers=3),)) == {"warmup": {}, "before": [{"type": "network"}]}


def few(items: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, max_size=2).map(tuple)


def configurations() -> st.SearchStrategy[Training]:
    number = st.sampled_from([0, 1, 2, 5])
    network = st.builds(Network, depth=number, workers=number)
    encoder = network | st.builds(Pixels, depth=number)
    optimizer = st.builds(Optimizer, rate=number, momentum=st.none() | number, fused=st.booleans())
    return st.builds(
        Training,
        path=st.sampled_from([Path("a"), Path("b")]),
        first=encoder,
        encoder=encoder,
        deep=encoder,
        teacher=st.none() | encoder,
        optimizer=optimizer,
        warmup=st.none() | optimizer,
        before=few(encoder),
        stages=few(optimizer),
        heads=st.dictionaries(st.sampled_from("xy"), optimizer),
        epochs=st.sampled_from([1, 100]),
        levels=few(number),
        ranks=st.none() | number,
        log=optimizer,
    )


def decisive(value: Any) -> Any:
    """A configuration written out in full, with its classes and without what is operational."""
    if isinstance(value, Config):
        shown = {name: decisive(getattr(value, name)) for name in type(value).model_fields if name not in value.operational}
        return type(value).__name__, shown
    if isinstance(value, tuple):
        return [decisive(item) for item in value]
    return {key: decisive(item) for key, item in value.items()} if isinstance(value, dict) else value


@given(first=configurations(), data=st.data())
def test_fields_are_equal_if_and_only_if_the_configurations_are(first: Training, data: st.DataObject) -> None:
    changed = data.draw(st.sets(st.sampled_from(sorted(Training.model_fields)), max_size=2))
    other = data.draw(configurations())
    second = first.model_copy(update={name: getattr(other, name) for name in changed})
    assert (first.fingerprint_fields() == second.fingerprint_fields()) == (decisive(first) == decisive(second))
