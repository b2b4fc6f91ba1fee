"""The committed quickstart bundle behind the routes, with and without keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pfedmma_deploy.serve.asking import Service
from pfedmma_deploy.serve.keys import add_key
from pfedmma_deploy.serve.server import make_service
from tests.serve.calling import QUICKSTART, served


@pytest.fixture(scope="module")
def service() -> Service:
    return make_service(QUICKSTART, device="cpu", threads=1)


@pytest.fixture(scope="module")
def caller(service: Service) -> Iterator[httpx.Client]:
    with served(service) as client:
        yield client


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A file of keys, and the keys: `a` for client 3, `both` for 3 and 7, `watch` for metrics."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    made = {
        "a": add_key(file, "a", ["3"]),
        "both": add_key(file, "both", ["3", "7"]),
        "every": add_key(file, "every", ["all"]),
        "watch": add_key(file, "watch", [], metrics=True),
    }
    return file, made


@pytest.fixture(scope="module")
def guarded(keys: tuple[Path, dict[str, str]]) -> Iterator[httpx.Client]:
    """A caller of a server with keys, which sends none by itself."""
    service = make_service(QUICKSTART, device="cpu", threads=1, keys=keys[0])
    with served(service) as client:
        yield client
