"""What holds for every test: nothing is downloaded, and help texts have one width."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def _offline() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("COLUMNS", "100")
        patch.setenv("TERMINAL_WIDTH", "100")
        yield
