"""`pfedmma serve`: a bundle on the network, requests for all clients in one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import find_bundle, flag, with_output
from .output import Output


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
    """
    from pfedmma_deploy.serve.server import Address, log_to_stderr, make_service
    from pfedmma_deploy.serve.server import serve as answer

    certificate, key = tls or (None, None)
    address = Address(host, port, certificate, key)
    address.require_safe(keys is not None)
    folder = find_bundle(model)
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

    def announce(url: str) -> None:
        clients = len(classifier.clients) - 1
        whom = "whoever has a key" if keys else "this machine alone, since there are no --keys"
        output.say(
            f"{folder} ({clients} clients, {classifier.device}) answers on {url} for {whom}; "
            f"documentation: {url}/docs (Ctrl-C ends it)"
        )
        output.result({"model": str(folder), "url": url, "device": classifier.device})
        output.stdout.flush()

    answer(service, address, announce)
