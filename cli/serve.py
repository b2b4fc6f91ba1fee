"""`pfedmma serve`: a bundle on the network, requests for all clients in one batch."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfedmma_deploy.errors import UsageError

from .options import find_bundle, flag, switch, with_output
from .output import Output

if TYPE_CHECKING:
    from pfedmma_deploy.serve.server import Address


@with_output
def serve(
    output: Output,
    model: Annotated[
        Path | None, flag("Exported bundle. [default: the newest in exports/]", "DIR")
    ] = None,
    host: Annotated[
        str, flag("Address to listen on; beyond this machine it takes --keys.", "ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[int, flag("Port; 0 takes a free one.", "N", min=0, max=65535)] = 8000,
    keys: Annotated[
        Path | None,
        flag("Who may ask for which clients: a file that `pfedmma key` makes.", "FILE"),
    ] = None,
    tls: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--tls", metavar="CERT KEY", help="Certificate and its key, PEM."),
    ] = None,
    batch_size: Annotated[int, flag("Images per call of the model, at most.", "N", min=1)] = 32,
    queue: Annotated[
        int, flag("Images that may wait; beyond, answers are 503 Retry-After.", "N", min=1)
    ] = 256,
    threads: Annotated[
        int | None, flag("CPU threads. [default: all cores it may use]", "N", min=1)
    ] = None,
    device: Annotated[str, flag("Where to compute.", "auto|cpu|cuda|tensorrt")] = "auto",
    ray: Annotated[
        bool, switch("--ray", "On a Ray cluster: the one that runs here, else a new one.")
    ] = False,
    replicas: Annotated[
        str, flag("With --ray: servers, or from how many to how many under load: 1-8.", "N")
    ] = "1",
    gpus: Annotated[
        float, flag("With --ray: GPUs of each; 0.25 lets four share one.", "N", min=0)
    ] = 0,
) -> None:
    """Answer over HTTP, for every client of a bundle, without torch.

    Requests that come at the same time, for whichever clients, go through the model together. A
    new version of the bundle in its folder is taken up without a failed request. Ctrl-C answers
    what has begun, then ends. Interactive documentation is at /docs.

    \b
    Examples:
      pfedmma serve --model exports/sites
      curl -F images=@photo.jpg -F client=3 http://127.0.0.1:8000/v1/classify
      pfedmma serve --host 0.0.0.0 --keys keys.toml --tls cert.pem key.pem
      pfedmma serve --ray --replicas 1-8 --gpus 0.25
    """
    from pfedmma_deploy.serve.server import Address, log_to_stderr, make_service
    from pfedmma_deploy.serve.server import serve as answer

    certificate, key = tls or (None, None)
    address = Address(host, port, certificate, key)
    address.require_safe(keys is not None)
    folder = find_bundle(model)
    whom = "whoever has a key" if keys else "this machine alone, since there are no --keys"

    def announce(url: str, words: str, **more: str) -> None:
        output.say(
            f"{folder} ({words}) answers on {url} for {whom}; documentation: {url}/docs (Ctrl-C "
            "ends it)"
        )
        output.result({"model": str(folder), "url": url, **more})
        output.stdout.flush()

    if ray:
        _on_ray(folder, address, keys, device, threads, batch_size, queue, replicas, gpus, announce)
        return
    output.note(f"Opening {folder} ...")
    service = make_service(
        folder, device=device, threads=threads, keys=keys, batch_size=batch_size, queue=queue
    )
    classifier = service.live.model.classifier
    if service.live.keys is not None:
        missing = service.live.keys.named() - set(service.live.model.indices)
        if missing:
            output.note(f"note: keys name clients that are not there: {', '.join(sorted(missing))}")
    if not output.quiet:
        log_to_stderr()

    words = f"{len(classifier.clients) - 1} clients, {classifier.device}"
    answer(service, address, lambda url: announce(url, words, device=classifier.device))


def _on_ray(
    folder: Path,
    address: Address,
    keys: Path | None,
    device: str,
    threads: int | None,
    batch_size: int,
    queue: int,
    replicas: str,
    gpus: float,
    announce: Callable[[str, str], None],
) -> None:
    """Run replicas on a cluster; raises `UsageError` for what is no number of them."""
    numbers = re.fullmatch(r"([1-9][0-9]{0,3})(?:-([1-9][0-9]{0,3}))?", replicas)
    if not numbers:
        raise UsageError(f"--replicas is a number, or a least and a most such as 1-8: {replicas!r}")
    from pfedmma_deploy.serve.on_ray import Replicas, run

    asked = Replicas(
        bundle=str(folder.resolve()),
        keys=str(keys.resolve()) if keys else None,
        device=device,
        threads=threads or 1,
        gpus=gpus,
        batch_size=batch_size,
        queue=queue,
        least=int(numbers[1]),
        most=int(numbers[2] or numbers[1]),
    )
    run(asked, address, lambda url: announce(url, f"{replicas} replicas on Ray"))
