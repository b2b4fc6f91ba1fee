"""The same application on Ray Serve: replicas on many machines, more of them under load.

Every replica is a whole server but for the port: its own model, queue, batches and keys. Ray's
proxy takes the requests and hands each to a replica; what `listening.py` does against silent
callers is then the proxy's business, or that of what stands before it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from starlette.types import ASGIApp

from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.serve.app import make_app
from pfedmma_deploy.serve.requests import sentence
from pfedmma_deploy.serve.server import GRACE, Address, make_service

NAME: Final = "pfedmma"
"""Of the application on the cluster."""


class Replicas(BaseModel):
    """What a replica is and how many there are; the `args` of a Ray Serve configuration."""

    model_config = ConfigDict(extra="forbid")

    bundle: Annotated[str, Field(description="Folder, at the same place on every machine")]
    keys: Annotated[str | None, Field(description="File of keys, likewise")] = None
    device: Annotated[str, Field(description="auto, cpu, cuda or tensorrt")] = "auto"
    threads: Annotated[int, Field(ge=1, description="CPU cores of a replica")] = 1
    gpus: Annotated[float, Field(ge=0, description="GPUs of a replica; 0.25: four share one")] = 0
    batch_size: Annotated[int, Field(ge=1, description="Images per call of the model")] = 32
    queue: Annotated[int, Field(ge=1, description="Images that may wait in a replica")] = 256
    least: Annotated[int, Field(ge=1, description="Replicas at least")] = 1
    most: Annotated[int, Field(ge=1, description="Replicas at most")] = 1


def application(args: dict[str, Any]) -> Any:
    """What a Ray Serve configuration names: `pfedmma_deploy.serve.on_ray:application`.

    Args:
        args: the fields of `Replicas`; `keys` is one of them, since others reach a cluster's port.

    Raises:
        UsageError: a field is not known, not right, or the keys are missing.
    """
    try:
        replicas = Replicas.model_validate(args)
    except ValidationError as error:
        raise UsageError(f"The args of the application are not right: {sentence(error)}") from None
    if replicas.keys is None:
        raise UsageError("A cluster's port is open to others: name a file of keys in args.keys.")
    return bind(replicas)


def bind(replicas: Replicas) -> Any:
    """The application for `ray.serve.run`; the bundle is opened by each replica."""

    # Called where the replica runs: nothing of a model travels.
    def build() -> ASGIApp:
        service = make_service(
            Path(replicas.bundle),
            device=replicas.device,
            threads=replicas.threads,
            keys=None if replicas.keys is None else Path(replicas.keys),
            batch_size=replicas.batch_size,
            queue=replicas.queue,
        )
        return make_app(service, only_local=replicas.keys is None)

    deployment = serve.deployment(
        serve.ingress(build)(),
        name=NAME,
        # Fewer than a batch, and no batch would ever be full.
        max_ongoing_requests=max(replicas.queue, replicas.batch_size),
        autoscaling_config={
            "min_replicas": replicas.least,
            "max_replicas": max(replicas.least, replicas.most),
            "target_ongoing_requests": replicas.batch_size,
        },
        ray_actor_options={"num_cpus": replicas.threads, "num_gpus": replicas.gpus},
        graceful_shutdown_timeout_s=GRACE,
    )
    return deployment.bind()


def run(replicas: Replicas, address: Address, on_ready: Callable[[str], None]) -> None:
    """Serve on the cluster that `RAY_ADDRESS` names or that runs here, else on one started now.

    Until Ctrl-C, which ends the application and leaves the cluster that was there before.

    Args:
        replicas: what to run.
        address: where the proxy listens.
        on_ready: told the URL once the first replica answers.

    Raises:
        UsageError: anybody could ask for everything.
    """
    address.require_safe(replicas.keys is not None)
    options: dict[str, Any] = {"host": address.host, "port": address.port}
    if address.certificate is not None:
        options["ssl_certfile"] = str(address.certificate.resolve())
        options["ssl_keyfile"] = str(address.key.resolve()) if address.key else None
    # SIGTERM, which ends containers and services, is to clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    serve.start(http_options=options)
    try:
        serve.run(bind(replicas), name=NAME)
        on_ready(address.url(address.port))
        while True:
            time.sleep(3600)
    finally:
        serve.shutdown()
