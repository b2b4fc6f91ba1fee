"""Where option values come from, and which are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from pfedmma_deploy.config import (
    DEFAULTS,
    PRESETS,
    Autocast,
    Classes,
    Optimizer,
    PartitionConfig,
    Scheme,
    TrainConfig,
    Transform,
    config_from_mapping,
    read_options,
    read_table,
)
from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.methods.registry import resolve_run


def resolve(
    flags: Mapping[str, object], file: Path | None = None, preset: str | None = None
) -> TrainConfig:
    return resolve_run(read_options(flags, file, preset))


NEEDED = {"data": "photos", "backbone": "ViT-B-16"}


def test_every_option_has_a_flag_with_its_choices() -> None:
    flags = read_table("options.toml")
    assert set(flags) - set(DEFAULTS) == {"dropout", "engine"}
    assert set(DEFAULTS) <= set(flags)
    choices = {"classes": Classes, "partition": Scheme, "transform": Transform}
    choices |= {"optimizer": Optimizer, "autocast": Autocast}
    for name, kind in choices.items():
        assert flags[name]["metavar"].split("|") == list(get_args(kind))


def test_defaults_are_the_papers() -> None:
    config = resolve(NEEDED)
    assert (config.lr, config.momentum, config.weight_decay) == (1e-3, 0.9, 5e-4)
    assert (config.batch_size, config.rounds, config.local_epochs) == (32, 50, 2)
    assert (config.parameters, config.logit_scale) == (
        {"bottleneck_dim": 32, "scale": 1e-3, "share": "projection", "towers": "both"},
        None,
    )
    assert (config.partition.clients, config.clients_per_round, config.partition.num_shots) == (
        10,
        1.0,
        16,
    )
    assert config.prompt == "a photo of a {}."
    assert resolve(NEEDED, preset="paper") == config


def test_flag_beats_file_beats_preset_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('rounds = 7\nlr = 1\nprompt = "a sketch of a {}."\n')
    config = resolve({"rounds": 9, "lr": None}, file, "quickstart")
    assert config.rounds == 9  # flag
    assert config.lr == 1.0 and isinstance(config.lr, float)  # file; the absent flag says nothing
    assert config.batch_size == PRESETS["quickstart"]["batch_size"]  # preset
    assert config.momentum == 0.9  # default


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(preset: str) -> None:
    assert resolve(NEEDED, preset=preset).data == "photos"


def test_hyper_parameters_come_from_flag_then_file_then_preset(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[parameters]\nscale = 1\nbottleneck_dim = 8\n")
    config = resolve({"parameters": {"bottleneck_dim": 4}}, file, "quickstart")
    found = [config.parameters[name] for name in ("bottleneck_dim", "scale")]
    assert found == [4, 1.0]
    preset = resolve({}, None, "quickstart").parameters
    assert [preset[name] for name in ("bottleneck_dim", "scale")] == [16, 0.1]


def test_a_preset_suggests_only_what_the_method_has() -> None:
    assert resolve({"method": "zero-shot"}, preset="quickstart").parameters == {}


def test_differential_privacy_takes_both_of_its_options() -> None:
    config = resolve({**NEEDED, "dp_clip": 1, "dp_noise": 0.5})
    assert (config.dp_clip, config.dp_noise) == (1.0, 0.5)
    assert (resolve(NEEDED).dp_clip, resolve(NEEDED).dp_noise) == (None, None)
    for given, missing in (("clip", "noise"), ("noise", "clip")):
        expected = (
            f"dp_{given} is given without dp_{missing}: differential privacy needs both, such as"
            " --dp-clip 0.1 --dp-noise 1"
        )
        with pytest.raises(UsageError, match=expected):
            resolve({**NEEDED, f"dp_{given}": 1.0})
    with pytest.raises(UsageError, match=r"dp_clip must be a number above 0, not 0\.0"):
        resolve({**NEEDED, "dp_clip": 0, "dp_noise": 1})
    with pytest.raises(UsageError, match=r"dp_noise must be a number of 0\.001 or more, not 0\.0"):
        resolve({**NEEDED, "dp_clip": 1, "dp_noise": 0})


def test_the_resolved_configuration_reads_back() -> None:
    config = resolve({"seed": 3}, preset="quickstart")
    assert config_from_mapping(config.to_dict()) == config


def test_the_flat_form_reads_back_too() -> None:
    config = resolve({"shots": 4, "partition": "domain"}, preset="quickstart")
    assert config.partition == PartitionConfig(scheme="domain", num_shots=4)
    options = config.to_options()
    assert (options["partition"], options["shots"], options["clients"]) == ("domain", 4, 10)
    assert config_from_mapping(options) == config
    assert list(options) == list(DEFAULTS)


@pytest.mark.parametrize(
    "text",
    [
        'partition = "dirichlet"\nshots = 4\nclients = 3\n',
        'partition = "dirichlet"\nnum_shots = 4\nclients = 3\n',
        '[partition]\nscheme = "dirichlet"\nnum_shots = 4\nclients = 3\n',
        '[partition]\npartition = "dirichlet"\nshots = 4\nclients = 3\n',
    ],
)
def test_a_partition_in_a_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    expected = PartitionConfig(scheme="dirichlet", num_shots=4, clients=3)
    assert resolve(NEEDED, file).partition == expected
    # A flag wins over the table as over a line.
    assert resolve({**NEEDED, "shots": 5}, file).partition == replace(expected, num_shots=5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[partition]\nrounds = 3\n", r"unknown option 'rounds' in \[partition\] of .*run\.toml"),
        ("shots = 3\nnum_shots = 3\n", r"run\.toml has two values for shots: leave one out"),
        ("shots = 3\n[partition]\nnum_shots = 3\n", "has two values for shots: leave one out"),
        ('engine = "quick"\n', "engine must be cohort or sequential, not 'quick'"),
    ],
)
def test_files_that_contradict_themselves(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        resolve(NEEDED, file)


def test_old_names_count_with_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('engine = "sequential"\ndropout = 0.1\n')
    options = read_options({**NEEDED, "dropout": 0.2}, file)
    config = resolve_run(options)
    assert (config.client_batching, config.client_dropout) == (False, 0.2)
    assert options.warnings == (
        f"{file}: engine is called client_batching now; the old name goes in the next version",
        f"{file}: dropout is called client_dropout now; the old name goes in the next version",
        "the command line: dropout is called client_dropout now; the old name goes in the next"
        " version",
    )
    assert read_options(NEEDED).warnings == ()


def test_a_switch_of_a_file_does_what_it_is_called_after(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("cache = false\n")
    assert resolve(NEEDED, file).token_shortcuts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unseen_domain": "ink"}, "--unseen-domain belongs to --partition leave-one-domain-out,"),
        ({"superclasses": "x.toml"}, "--superclasses belongs to --partition pachinko, not to"),
    ],
)
def test_options_of_another_partition(options: Mapping[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve({**NEEDED, **options})
    assert resolve({**NEEDED, **options, "clients_file": "c.toml"}).partition.clients_file


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("local-epoch = 3\n")
    with pytest.raises(
        UsageError,
        match=r"unknown option 'local-epoch' in .*run\.toml; did you mean 'local_epochs'\?",
    ):
        resolve(NEEDED, file)
    with pytest.raises(
        UsageError, match=r"unknown option 'zzz' in the command line; known options"
    ):
        resolve({**NEEDED, "zzz": 1})


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"configuration file .*none\.toml: No such file"):
        resolve(NEEDED, tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("rounds: 3")
    with pytest.raises(UsageError, match=r"bad\.toml is not TOML: "):
        resolve(NEEDED, bad)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"bad\.toml is not TOML: "):
        resolve(NEEDED, bad)


def test_unknown_preset() -> None:
    with pytest.raises(
        UsageError, match=r"preset must be one of paper, quickstart, not 'quickstrat'; did"
    ):
        resolve(NEEDED, preset="quickstrat")


@pytest.mark.parametrize("missing", ["data", "backbone"])
def test_data_and_backbone_are_needed(missing: str) -> None:
    given = {name: value for name, value in NEEDED.items() if name != missing}
    with pytest.raises(
        UsageError, match=f"no {missing} given: name one with --{missing}, for example"
    ):
        resolve(given)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("data", " ", "data must be a name, not ' '"),
        ("backbone", "", "backbone must be a name"),
        ("method", "", "method must be a name"),
        ("clients", 0, "clients must be a whole number of 1 or more, not 0"),
        ("clients", 2.5, "clients must be a whole number, not 2.5"),
        ("clients", True, "clients must be a whole number, not True"),
        ("rounds", -1, "rounds must be a whole number of 1 or more, not -1"),
        ("local_epochs", 0, "local_epochs must be a whole number of 1 or more"),
        ("batch_size", 0, "batch_size must be a whole number of 1 or more"),
        ("classes", "novel", "classes must be base-novel or all, not 'novel'"),
        ("partition", "dirichle", "not 'dirichle'; did you mean 'dirichlet'?"),
        ("transform", "crop", "transform must be random or none, not 'crop'"),
        ("dirichlet_beta", 0, "dirichlet_beta must be between 0.001 and 1000000, not 0.0"),
        ("shots", -1, "shots must be 0 (all images) or more images per class, not -1"),
        ("clients_per_round", 1.5, "clients_per_round must be a fraction above 0, at most 1"),
        ("clients_per_round", 0, "clients_per_round must be a fraction above 0, at most 1"),
        ("seed", -1, "seed must be a whole number from 0"),
        ("lr", float("nan"), "lr must be a number above 0, not nan"),
        ("lr", float("inf"), "lr must be a number above 0, not inf"),
        ("lr", "fast", "lr must be a number, not 'fast'"),
        ("momentum", 1.0, "momentum must be a number from 0 to below 1, not 1.0"),
        ("weight_decay", -0.1, "weight_decay must be a number of 0 or more, not -0.1"),
        ("parameters", {"scale": 0.0}, "scale must be above 0, not 0.0"),
        ("parameters", {"scale": "big"}, "pfedmma: scale must be a number, not 'big'"),
        ("parameters", {"bottleneck_dim": 0}, "bottleneck_dim must be 1 or more, not 0"),
        ("parameters", {"rank": 8}, "pfedmma has no hyper-parameter 'rank'"),
        ("parameters", 3, "parameters must be a table of names and values, not 3"),
        ("logit_scale", -20, "logit_scale must be a number above 0, not -20.0"),
        ("prompt", "a photo", "prompt must be a text with {} for the class name, not 'a photo'"),
        ("prompt", 3, "prompt must be a text, not 3"),
    ],
)
def test_values_out_of_range(name: str, value: object, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve({**NEEDED, name: value})
    assert message in str(caught.value)


def test_every_field_but_two_has_a_default() -> None:
    assert TrainConfig(data="a", backbone="b").method == "pfedmma"
