from __future__ import annotations

import math

import pytest

from lorascope.core.errors import InputError
from lorascope.training.spec import PRESETS, RunSpec


def test_alpha_is_twice_the_rank_unless_given() -> None:
    assert RunSpec(rank=8).lora_alpha == 16
    assert RunSpec(rank=8, alpha=5).lora_alpha == 5


def test_preset_fills_in_and_own_values_win() -> None:
    spec = RunSpec.from_mapping({"preset": "paper", "batch_size": 4})
    assert (spec.learning_rate, spec.batch_size, spec.weight_decay, spec.preset) == (4e-5, 4, 0.0, "paper")


def test_epochs_replace_the_steps_of_a_preset() -> None:
    spec = RunSpec.from_mapping({"preset": "quick", "epochs": 2})
    assert (spec.max_steps, spec.epochs) == (None, 2)
    assert RunSpec.from_mapping({"preset": "quick"}).max_steps == PRESETS["quick"]["max_steps"]


def test_every_preset_is_a_valid_spec() -> None:
    for name in PRESETS:
        assert RunSpec.from_mapping({"preset": name}).preset == name


def test_yaml_lists_become_tuples() -> None:
    spec = RunSpec.from_mapping({"target_modules": ["q_proj"], "metrics": ["ce"]})
    assert (spec.target_modules, spec.metrics) == (("q_proj",), ("ce",))
    for length in ([101, 200], (101, 200)):
        assert RunSpec.from_mapping({"length": length}).length == (101, 200)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rank": -1}, ["rank -1", "at least 0"]),
        ({"learning_rate": 0.0}, ["learning_rate 0.0", "above 0"]),
        ({"learning_rate": math.inf}, ["learning_rate inf"]),
        ({"learning_rate": math.nan}, ["learning_rate nan"]),
        ({"alpha": -2}, ["alpha -2"]),
        ({"dropout": 1.0}, ["dropout 1.0", "below 1"]),
        ({"weight_decay": -0.1}, ["weight_decay -0.1"]),
        ({"batch_size": 0}, ["batch_size 0"]),
        ({"batch_size": 8, "micro_batch_size": 3}, ["micro_batch_size 3", "batch_size 8", "divisors"]),
        ({"max_steps": 0}, ["max_steps 0"]),
        ({"epochs": 0.0}, ["epochs 0.0"]),
        ({"seed": -1}, ["seed -1"]),
        ({"measure_limit": 0}, ["measure_limit 0"]),
        ({"optimizer": "adam_torch"}, ["adam_torch", "did you mean 'adamw_torch'"]),
        ({"schedule": "cosin"}, ["cosin", "did you mean 'cosine'"]),
        ({"overlong": "cut"}, ["unknown overlong 'cut'"]),
        ({"variant": "global"}, ["unknown variant 'global'"]),
        ({"tokens": "first"}, ["unknown tokens 'first'"]),
        ({"metrics": ("miub",)}, ["unknown metric 'miub'", "miub_js"]),
        ({"target_modules": ()}, ["target_modules is empty"]),
        ({"warmup_steps": 5}, ["warmup_steps 5", "constant_with_warmup"]),
        ({"share": 0}, ["share 0", "at least 1"]),
        ({"length": (0, 100)}, ["length [0, 100]", "[1, 100]"]),
        ({"length": (200, 101)}, ["length [200, 101]"]),
        ({"preset": "papers"}, ["unknown preset 'papers'", "paper"]),
    ],
)
def test_bad_values_are_refused_in_one_line(values: dict[str, object], words: list[str]) -> None:
    for build in (lambda: RunSpec(**values), lambda: RunSpec.from_mapping(values)):  # type: ignore[arg-type]
        with pytest.raises(InputError) as caught:
            build()
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 400
        for word in words:
            assert word in message


def test_unknown_names_and_types_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"unknown key in sweep\.yaml 'rnak': did you mean 'rank'"):
        RunSpec.from_mapping({"rnak": 4}, source="sweep.yaml")
    with pytest.raises(InputError, match=r"'metrics'.*got 'miub_js'.: give a list"):
        RunSpec.from_mapping({"metrics": "miub_js"})
    with pytest.raises(InputError, match=r"'rank'.*got 'four'"):
        RunSpec.from_mapping({"rank": "four"})
    for length in (["1", True], [1.5, 100], [1], [1, 2, 3], "1-100"):
        with pytest.raises(InputError, match="length"):
            RunSpec.from_mapping({"length": length})
