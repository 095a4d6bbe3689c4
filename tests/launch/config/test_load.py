from pathlib import Path
from typing import Any

import pytest

from curation.base.errors import ConfigError
from curation.selectors.config import BalancedConfig, SasConfig, SelectConfig
from launch.config.load import load_run, load_section, save_run
from launch.config.recipes import recipes
from pipeline.rounds.config import EmbedConfig, RunConfig
from trainers.engine.config import SgdConfig, TrainConfig
from trainers.methods.config import ByolConfig, DinoConfig, SimclrConfig
from trainers.models.config import TimmConfig

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


def test_a_file_builds_on_its_base_and_overrides_on_both(tmp_path: Path) -> None:
    write(tmp_path, SMALL + "seed: 1\nrounds: 5\n", "base.yaml")
    path = write(tmp_path, "base: base.yaml\nseed: 2\nselect: {fraction: 0.25}\n")
    config = load_run(path, ["rounds=7"])
    assert (config.seed, len(config.rounds), config.select.fraction, config.select.strategy) == (2, 7, 0.25, "random")


def test_fields_of_the_default_variant_need_no_type(tmp_path: Path) -> None:
    assert load_run(write(tmp_path, SMALL), ["train.method.momentum=0.5"]).train.method.momentum == 0.5  # type: ignore[union-attr]


def test_another_variant_starts_afresh(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL + "train: {method: {type: dino, momentum: 0.5}}\n")
    assert load_run(path, ["train.method={type: swav, epsilon: 0.1}"]).train.method.type == "swav"


def test_another_selector_leaves_the_settings_of_the_old_one(tmp_path: Path) -> None:
    path = write(tmp_path, "source: {type: digits}\nselect: {strategy: balanced, fraction: 0.5, max_repeats: 3}\n")
    config = load_run(path, ["select.strategy=sas", "select.level=2"])
    assert config.select == SasConfig(fraction=0.5, level=2)  # every selector takes a budget: it belongs to the section


def test_the_default_variant_is_the_one_that_a_file_without_a_type_sets(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL + "train: {method: {center_momentum: 0.5}, optimizer: {betas: [0.5, 0.6]}}\n")
    config = load_run(path, ["train.method.type=simclr", "train.optimizer.type=sgd"])
    assert (config.train.method, config.train.optimizer) == (SimclrConfig(), SgdConfig())
    assert load_run(path, ["train.method.type=dino"]).train.method == DinoConfig(center_momentum=0.5)


def test_the_order_of_words_does_not_matter_to_a_new_variant(tmp_path: Path) -> None:
    words = ["train.method.momentum=0.9", "train.method.type=byol"]
    for ordered in (words, words[::-1]):
        assert load_run(write(tmp_path, SMALL), ordered).train.method == ByolConfig(momentum=0.9)


def test_a_budget_takes_the_place_of_a_fraction_of_the_file(tmp_path: Path) -> None:
    select = load_run(write(tmp_path, SMALL), ["select.budget=10"]).select
    assert (select.budget, select.fraction) == (10, None)
    saved = save_run(load_run(write(tmp_path, SMALL), [f"run_dir={tmp_path}/run"]))  # has budget: null
    assert load_run(str(saved), ["select={budget: 10}"]).select.budget == 10
    child = write(tmp_path, "base: mine.yaml\nselect: {budget: 7}\n", "child.yaml")
    assert load_run(child).select.budget == 7
    assert load_run(child, ["select.fraction=0.25"]).select.fraction == 0.25


def test_null_clears_a_section(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        SMALL
        + "dedup: {similarity: 0.9}\ntrain: {epochs: 3, method: {type: byol}, stages: [{begins: 0.5, global_size: 32}]}\n",
    )
    assert load_run(path, ["dedup=null"]).dedup is None
    assert load_run(path, ["train=null"]).train == TrainConfig()
    assert load_run(path, ["train.method=null"]).train.method == DinoConfig()
    assert load_run(path, ["train.stages=null"]).train.stages == ()
    assert load_run(path, ["train=null", "train.learning_rate=0.1"]).train == TrainConfig(learning_rate=0.1)
    with pytest.raises(ConfigError, match="select: must be set"):
        load_run(path, ["select=null"])


def test_an_empty_section_of_a_file_means_its_defaults(tmp_path: Path) -> None:
    assert load_run(write(tmp_path, SMALL + "train:\ncluster:\n")).train == TrainConfig()


def test_a_run_directory_may_have_any_name(tmp_path: Path) -> None:
    run_dir = tmp_path / "it's mine: 50% #1"
    save_run(load_run(write(tmp_path, SMALL), run_dir=run_dir))
    assert load_run(str(run_dir / "config.yaml"), run_dir=run_dir).run_dir == run_dir


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
        ("select.budget=10 and select.fraction=0.5", ["select", "exactly one of fraction and budget"]),
        ("select={budget: 10, fraction: 0.5}", ["select", "exactly one of fraction and budget"]),
        ("dedup.similarty=0.9", ["dedup.similarty: there is no such setting", "Did you mean similarity?"]),
        (
            "select.after=[{strategy: random, fraction: 0.5, mebers: 1}]",
            ["select.after.0.mebers: there is no such setting", "Allowed here: fraction, budget, after, strategy."],
        ),
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


def test_bases_in_a_circle_are_named(tmp_path: Path) -> None:
    write(tmp_path, "base: mine.yaml", "other.yaml")
    with pytest.raises(ConfigError, match=r"own base: .*mine\.yaml → .*other\.yaml → .*mine\.yaml\. Remove one"):
        load_run(write(tmp_path, "base: other.yaml"))


def test_a_section_alone_takes_words_as_a_run_does() -> None:
    words = ["encoder={type: vit, size: small}", "encoder.type=timm", "encoder.model=resnet18", "batch_size=8"]
    assert load_section(EmbedConfig, words, name="embed") == EmbedConfig(encoder=TimmConfig(model="resnet18"), batch_size=8)
    selectors: Any = SelectConfig
    balanced = {"strategy": "balanced"}
    assert load_section(selectors, ["fraction=0.5"], name="select", base=balanced) == BalancedConfig(fraction=0.5)
    assert load_section(selectors, ["level=2", "budget=5", "strategy=sas"], name="select", base=balanced) == SasConfig(
        level=2, budget=5
    )
    with pytest.raises(ConfigError, match=r"select has a mistake .*\n  strategy: found 'best', allowed: 'balanced'"):
        load_section(selectors, ["strategy=best"], name="select", base=balanced)


def test_an_unknown_recipe_names_the_known() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean quickstart\?.*cifar10"):
        load_run("quikstart")
