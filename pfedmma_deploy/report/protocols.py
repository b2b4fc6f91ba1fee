"""Tables of papers, run again: their data sets, budget and hyper-parameters (`--protocol`).

    DIR/<data set>/      a comparison each
    DIR/protocol.md      the means over data sets beside the published ones, and what differs
    DIR/protocol.json

The protocols themselves are in `assets/protocols.toml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pfedmma_deploy.backbone.loading import require_weights
from pfedmma_deploy.config import DEFAULTS, TrainConfig, read_changes, read_table
from pfedmma_deploy.data.catalog import ROOT_VARIABLE, data_root, find_known, known_datasets
from pfedmma_deploy.data.datasets import load_dataset
from pfedmma_deploy.errors import DataError, UsageError, nearest
from pfedmma_deploy.methods.registry import resolve_run
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.report.compare import (
    Comparison,
    Configure,
    by_method,
    plan,
    require_lists,
)
from pfedmma_deploy.report.trials import Trial
from pfedmma_deploy.report.work import Work

_NOT_OF_THE_PROTOCOL = ("data", "method", "seed", "pretrained")
"""Options that say nothing of whether a protocol is followed: weights may be a file's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One table of a paper (`assets/protocols.toml`)."""

    name: str
    title: str
    source: str
    datasets: tuple[str, ...]
    """Names of `catalog.known_datasets`."""
    methods: tuple[str, ...]
    options: Mapping[str, Any]
    """By the names of the flags."""
    note: str
    """What has to be known when figures are compared with the paper's."""


@dataclass(frozen=True)
class ProtocolRun:
    """What a protocol came to here."""

    protocol: Protocol
    folder: Path
    comparisons: Mapping[str, Comparison]
    """By data set, in the protocol's order; without those that are missing."""
    missing: Mapping[str, str]
    """Why a data set was left out, by name."""
    changed: Mapping[str, Any]
    """Options that were given other values than the protocol's, by name."""
    warnings: Sequence[str]
    """What reading the data found."""


@cache
def known_protocols() -> Mapping[str, Protocol]:
    """Every protocol by name, in the order of the file."""
    known = {}
    for name, table in read_table("protocols.toml").items():
        values: dict[str, Any] = {**table}
        for key in ("datasets", "methods"):
            values[key] = tuple(table[key])
        known[name] = Protocol(name=name, **values)
    return known


def find_protocol(name: str) -> Protocol:
    """The protocol of that name. Raises `UsageError` naming the known ones."""
    known = known_protocols()
    if name not in known:
        raise UsageError(
            f"no protocol is called {name!r}{nearest(name, known)} (known: {', '.join(known)})"
        )
    return known[name]


def run_protocol(
    protocol: Protocol,
    seeds: Sequence[int],
    given: Mapping[str, Any],
    folder: Path,
    *,
    config_file: Path | None = None,
    methods: Sequence[str] | None = None,
    against: str | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> ProtocolRun:
    """Run what is missing of a protocol, seed by seed over all data sets and methods.

    Args:
        protocol: which one.
        seeds: each is one repetition.
        given: options that are given, by the names of the flags; they win over the protocol's.
            `data` is the folder that holds the data sets, or else what `PFEDMMA_DATA` names.
        folder: where trials and results are kept.
        config_file: TOML file of more options, as of `read_options`.
        methods: others than the protocol's.
        against: the method that the others are held against; None takes the first.
        jobs: trials at the same time.
        progress: is told what is missing, how long it will take, and of each trial.

    Raises:
        UsageError: as `compare` does, or no folder of data sets is named.
        DataError: none of the data sets is there.
        BackboneError: the weights are not on this machine; nothing is downloaded.
    """
    methods = protocol.methods if methods is None else methods
    against = require_lists(methods, seeds, against, jobs)
    progress = progress or Silent()
    options = read_changes(given, config_file).given
    root = data_root(options.get("data"))
    if root is None:
        raise UsageError(
            f"--protocol {protocol.name} needs the folder that holds {_listed(protocol.datasets)}: "
            f"name it with --data, or set {ROOT_VARIABLE}"
        )
    places, missing, warnings = _find_datasets(protocol, root)
    if missing:
        progress.note(missing_sentence(protocol, missing))
    for warning in warnings:
        progress.note(f"warning: {warning}")
    configure = {name: _configure(protocol, options, place) for name, place in places.items()}
    trials = {name: plan(methods, seeds, one, folder / name) for name, one in configure.items()}
    first = next(iter(trials.values()))[0].config
    require_weights(first.backbone, first.pretrained)
    comparisons = _run(trials, len(methods), against, Work(jobs, progress), folder)
    return ProtocolRun(
        protocol, folder, comparisons, missing, _changed(protocol, options), warnings
    )


def missing_sentence(protocol: Protocol, missing: Mapping[str, str]) -> str:
    """Which of the protocol's data sets were left out, and why."""
    reasons = [f"{name} ({why})" for name, why in missing.items()]
    return (
        f"{len(missing)} of {len(protocol.datasets)} data sets of {protocol.name} are left out: "
        f"{', '.join(reasons)}; `pfedmma data info NAME` says what is expected and where to get it"
    )


def _find_datasets(
    protocol: Protocol, root: Path
) -> tuple[dict[str, Path], dict[str, str], list[str]]:
    """Folders of the data sets that can be read, why others cannot, and what reading them found."""
    places: dict[str, Path] = {}
    missing: dict[str, str] = {}
    warnings: list[str] = []
    for name in protocol.datasets:
        known = known_datasets()[name]
        place = find_known(known, root)
        if place is None:
            missing[name] = f"no folder {_listed(known.folders, 'or')} in {root}"
            continue
        try:
            dataset = load_dataset(place, verify=False)
        except DataError as error:
            missing[name] = str(error)
            continue
        places[name] = place
        warnings += [f"{name}: {problem}" for problem in dataset.problems]
    if not places:
        raise DataError(missing_sentence(protocol, missing))
    return places, missing, warnings


def _changed(protocol: Protocol, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not the protocol's, or the default where it names none."""
    changed = {}
    for name, value in options.items():
        asked = protocol.options.get(name, DEFAULTS.get(name))
        if name not in _NOT_OF_THE_PROTOCOL and value != asked:
            changed[name] = value
    return changed


def _configure(protocol: Protocol, options: Mapping[str, Any], place: Path) -> Configure:
    suggested = dict(protocol.options)
    if options.get("backbone", suggested["backbone"]) != suggested["backbone"]:
        # The weights' name belongs to the protocol's backbone.
        del suggested["pretrained"]

    def configure(method: str, seed: int) -> TrainConfig:
        given = {**options, "data": str(place), "method": method, "seed": seed}
        return resolve_run(replace(read_changes(given), suggested=suggested))

    return configure


def _run(
    trials: Mapping[str, Sequence[Trial]], methods: int, against: str, work: Work, folder: Path
) -> dict[str, Comparison]:
    """Trials of each data set, `methods` of them per seed, as one comparison per data set."""
    seeds = len(next(iter(trials.values()))) // methods
    order: list[Trial] = []
    for seed in range(seeds):
        for own in trials.values():
            order += own[seed * methods : (seed + 1) * methods]
    found = {trial.folder: one for trial, one in zip(order, work.run(order, "trials"), strict=True)}
    comparisons = {}
    for name, own in trials.items():
        results = by_method([found[trial.folder] for trial in own])
        config = own[0].config
        comparisons[name] = Comparison(folder / name, config, results, {}, "harmonic", against)
    return comparisons


def _listed(names: Sequence[str], word: str = "and") -> str:
    return f" {word} ".join(filter(None, (", ".join(names[:-1]), names[-1])))
