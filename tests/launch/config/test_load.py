from pathlib import Path

import pytest

from curation.base.errors import ConfigError
from launch.config.load import load_run, parse_overrides, recipes, save_run
from pipeline.config import RunConfig

SMALL = "run_dir: out\nsource: {type: images, path: here}\nselect: {strategy: random, fraction: 0.5}\n"


def write(directory: Path, text: str, name: str = "mine.yaml") -> str:
    (directory / name).write_text(text)
    return str(directory / name)


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_loads_by_name(name: str) -> None:
    assert isinstance(load_run(name), RunConfig)


def test_a_saved_run_is_the_same_run(tmp_path: Path) -> None:
    config = load_run("quickstart", [f"run_dir={tmp_path}/run", "train.epochs=2.5"])
    assert load_run(str(save_run(config))) == config


def test_overrides_are_yaml() -> None:
    found = parse_overrides(["a.b=1e-3", "a.c=[1, 2]", "d={e: on}", "f=", "a.b=2"])
    assert found == {"a": {"b": 2, "c": [1, 2]}, "d": {"e": "on"}, "f": None}
    assert isinstance(parse_overrides(["x=1e-3"])["x"], float)


def test_a_file_builds_on_its_base_and_overrides_on_both(tmp_path: Path) -> None:
    write(tmp_path, SMALL + "seed: 1\nrounds: 5\n", "base.yaml")
    path = write(tmp_path, "base: base.yaml\nseed: 2\nselect: {fraction: 0.25}\n")
    config = load_run(path, ["rounds=7"])
    assert (config.seed, config.rounds, config.select.fraction, config.select.strategy) == (2, 7, 0.25, "random")


def test_fields_of_the_default_variant_need_no_type(tmp_path: Path) -> None:
    assert load_run(write(tmp_path, SMALL), ["train.method.momentum=0.5"]).train.method.momentum == 0.5  # type: ignore[union-attr]


def test_another_variant_starts_afresh(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL + "train: {method: {type: dino, momentum: 0.5}}\n")
    assert load_run(path, ["train.method={type: swav, epsilon: 0.1}"]).train.method.type == "swav"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("trian.epochs=3", ["trian: there is no such setting", "Did you mean train?"]),
        ("train.mix=[{samples: a, selection: b, weight: 0.5}, {samples: a, selection: c, weight: 0.5}]", ["leave a share"]),
        (
            "train={label: level_1, order: distinct, mix: [{samples: a, selection: b, weight: 0.5}]}",
            ["order distinct", "leave out mix"],
        ),
        ("train.epoch=3", ["train.epoch: there is no such setting", "Did you mean epochs?"]),
        ("train.method.momentun=1", ["train.method.momentun", "Did you mean momentum?"]),
        ("train.epochs=many", ["train.epochs: found 'many'", "number"]),
        ("train.epochs=-1", ["train.epochs: found -1", "greater than 0"]),
        ("train.method.type=simclr9", ["train.method.type: found 'simclr9'", "'dino', 'ibot'"]),
        ("cluster.levels=[3, 5]", ["cluster", "descend"]),
        ("select.budget=10", ["select", "exactly one of fraction and budget"]),
        ("train.views.global_size=30", ["train", "multiple of encoder.patch_size 16"]),
        ("train.global_batch_size=12 and train.ranks=5", ["global_batch_size 12 must be a multiple of ranks 5"]),
        (
            "train.method.type=w-mse and train.global_batch_size=192",
            ["slice_size 128 must divide global_batch_size 192"],
        ),
        ("train.method.type=ibot", ["method ibot hides patches", "encoder.mask_token=true"]),
        ("train.encoder={type: timm, small_stem: true, pretrained: true}", ["small_stem has no published weights"]),
        ("source=here", ["source", "found 'here'"]),
        ("rounds", ["not a setting", "key=value"]),
        ("rounds=[1", ["not valid YAML"]),
    ],
)
def test_a_mistake_says_where_what_and_what_instead(tmp_path: Path, override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(write(tmp_path, SMALL), override.split(" and "))
    for part in parts:
        assert part in str(caught.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 mistakes") as caught:
        load_run(write(tmp_path, SMALL), ["sede=1", "rounds=0", "train.ranks=x"])
    assert all(word in str(caught.value) for word in ("sede", "seed?", "rounds: found 0", "train.ranks: found 'x'"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "must hold settings"),
        ("base: nowhere.yaml", "no recipe of that name"),
        ("base: mine.yaml", "its own base"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("seed: 1", "source: must be set"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run(write(tmp_path, text))


def test_an_unknown_recipe_names_the_known() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean quickstart\?.*cifar10"):
        load_run("quikstart")
