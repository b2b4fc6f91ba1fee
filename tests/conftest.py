"""What holds for every test: one thread, no download, a cache of its own, one width of texts."""

from __future__ import annotations

import os

import pytest

# Before torch is imported: models this small gain nothing from threads, and on a busy machine
# threads that wait for each other make a test thirty times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _offline(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("PFEDMMA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("COLUMNS", "100")
        patch.setenv("TERMINAL_WIDTH", "100")
        yield
