"""What is read of a processor, on the systems that there are."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from pfedmma_deploy import processor
from pfedmma_deploy.processor import describe_processor, is_amd, processor_features

LINUX = "processor: 0\nvendor_id\t: {}\nflags\t: fpu avx2 avx512f\n\nprocessor: 1\nflags: x\n"


def pretend(monkeypatch: pytest.MonkeyPatch, text: str | None, name: str = "") -> None:
    class File:
        def __init__(self, path: str) -> None:
            assert path == "/proc/cpuinfo"

        def exists(self) -> bool:
            return text is not None

        def read_text(self, encoding: str) -> str:
            assert text is not None
            return text

    monkeypatch.setattr(processor, "Path", File)
    monkeypatch.setattr(platform, "processor", lambda: name)


@pytest.mark.parametrize(("maker", "expected"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_linux(monkeypatch: pytest.MonkeyPatch, maker: str, expected: bool) -> None:
    pretend(monkeypatch, LINUX.format(maker))
    assert describe_processor()["processor"] == "0"
    assert processor_features() == {"fpu", "avx2", "avx512f"}
    assert is_amd() is expected


def test_linux_on_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "processor\t: 0\nFeatures\t: fp asimd\n", "aarch64")
    assert processor_features() == {"fp", "asimd"}
    assert not is_amd()


def test_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None, "AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD")
    assert is_amd()
    pretend(monkeypatch, None, "Intel64 Family 6 Model 158 Stepping 10, GenuineIntel")
    assert not is_amd()
    assert processor_features() == set()


def test_this_machine() -> None:
    assert Path("/proc/cpuinfo").exists() == bool(describe_processor())
