"""`pfedmma quickstart`: the whole job on what the package carries."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pfedmma_deploy.config import TrainConfig, read_options
from pfedmma_deploy.export import EXPORTS
from pfedmma_deploy.system import peak_memory

from .export import print_report
from .options import Clients, Seed, flag, with_output
from .output import Output, Row, print_evaluation

if TYPE_CHECKING:
    from pfedmma_deploy.federated.session import Session
    from pfedmma_deploy.runtime import Prediction

SHOWN = 6
"""Test images whose predictions are shown."""
STRENGTHS = (0.0, 0.5, 1.0, 1.5)
"""At which clients are measured for the bundle: `pfedmma export` takes more, and its time."""


@with_output
def quickstart(
    output: Output,
    data: Annotated[
        str | None, flag("Other images. [default: cifar10-sample, in this package]", "NAME_OR_DIR")
    ] = None,
    clients: Clients = None,
    seed: Seed = None,
) -> None:
    """Run the whole job on what the package carries.

    Trains, personalizes, exports, predicts and compares with zero-shot, in about two minutes.

    Everything that it needs is in the package: a small CLIP (pfedmma-tiny) and real images. Half
    of the classes are spread unevenly over the clients, the other half stay unseen.

    \b
    Examples:
      pfedmma quickstart
      pfedmma quickstart --data my_photos --clients 3
    """
    flags = {"data": data, "clients": clients, "seed": seed}
    options = read_options(flags, preset="quickstart")
    from pfedmma_deploy.methods.registry import resolve_run
    from pfedmma_deploy.store.run import free_folder

    config = resolve_run(options)
    folder = free_folder(config.data)
    _run(config, folder, output)


def _run(config: TrainConfig, folder: Path, output: Output) -> None:
    from pfedmma_deploy.export.run import export_run
    from pfedmma_deploy.federated.evaluate import evaluate_run
    from pfedmma_deploy.federated.personalize import fine_tune
    from pfedmma_deploy.federated.session import open_run_session
    from pfedmma_deploy.federated.train import train

    times: dict[str, float] = {}

    @contextmanager
    def step(name: str, text: str) -> Iterator[None]:
        output.note(f"{text} ...")
        began = time.perf_counter()
        yield
        times[name] = time.perf_counter() - began

    with step("train", f"Training {config.partition.clients} clients for {config.rounds} rounds"):
        trained = train(config, folder, progress=output.progress)
    run = trained.run
    with step("personalize", "Personalizing every client"):
        session = open_run_session(run)
        for client in output.progress.track(run.client_ids, "clients", len(run.client_ids)):
            fine_tune(run, client, session=session)
    with step("evaluate", "Comparing with zero-shot CLIP"):
        found = evaluate_run(run, session=session, progress=output.progress)
    values, bundle = found.to_dict(), EXPORTS / folder.name
    with step("export", "Exporting all clients into one bundle, checked against torch"):
        report = export_run(
            run,
            bundle,
            measured=found,
            strengths=STRENGTHS,
            session=session,
            progress=output.progress,
        ).to_dict()
    with step("predict", "Predicting with the bundle"):
        predictions = _predict(session, bundle, run.client_ids[0])

    print_report(output, report)
    if predictions:
        columns = ["Image", "True class", "Zero-shot", f"Client {run.client_ids[0]}"]
        output.table(columns, predictions, "Predictions without torch")
    title = f"Means over {len(values['clients'])} clients (run {run.folder})"
    print_evaluation(output, values, title)
    sent = trained.bytes_up_per_client_round
    output.say(f"Sent per client and round: {sent:,} bytes each way.")
    total = sum(times.values())
    steps = ", ".join(f"{name} {seconds:.0f}" for name, seconds in times.items())
    memory = peak_memory()
    output.say(f"Seconds: {total:.0f} ({steps}). Peak memory: {memory / 1e9:.1f} GB.")
    predict = f"pfedmma predict PHOTO.jpg --model {bundle} --client {run.client_ids[0]}"
    output.note(
        f"Next:\n  {predict} --compare\n"
        f'  {predict} --classes "cat,dog"\n'
        f"  pfedmma demo --model {bundle}   both models in the browser\n"
        f"  pfedmma inspect {bundle}\n"
        "  pfedmma quickstart --data FOLDER   your own images, one sub-folder per class"
    )
    output.result(
        {
            **values,
            "run": str(folder),
            "bundle": str(bundle),
            "bytes_up_per_client_round": sent,
            "bytes_down_per_client_round": trained.bytes_down_per_client_round,
            "seconds": total,
            "seconds_by_step": times,
            "peak_memory": memory,
        }
    )


def _predict(session: Session, bundle: Path, client: str) -> list[Row]:
    """A few test images of one client through the bundle, as production would see them."""
    from pfedmma_deploy.runtime import Classifier

    classifier = Classifier.load(bundle)
    federation = session.federation
    held = next(c for c in federation.clients if c.id == client).test
    examples = [held[i * len(held) // SHOWN] for i in range(SHOWN)] if held else []
    images = [federation.dataset.open_image(example) for example in examples]
    plain, own = classifier.predict(images, 0), classifier.predict(images, client)
    return [
        [example.key, federation.dataset.class_names[example.label], *map(_best, pair)]
        for example, *pair in zip(examples, plain, own, strict=True)
    ]


def _best(prediction: Prediction) -> str:
    answer = prediction.top[0]
    return f"{answer.name} {answer.probability:.0%}"
