"""`pfedmma doctor`: is this installation well, and what to do where it is not.

Every check stands alone: one that fails is a finding and hides no other. What can crash or take
long (importing torch, running a model on a provider) is tried in processes of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedmma_deploy.errors import UsageError
from pfedmma_deploy.progress import Progress, Silent
from pfedmma_deploy.report import doctor_devices, doctor_packages, doctor_places
from pfedmma_deploy.report.doctor_check import Check, guarded
from pfedmma_deploy.report.doctor_probe import Probe

__all__ = ["Diagnosis", "diagnose"]

DEVICES = ("auto", "cpu", "cuda", "tensorrt")
"""As in `runtime.providers`, which needs numpy: nothing that may be broken is imported here."""
IMPORTED = ("torch", "torchvision", "open_clip")
"""What training and export import, in the order in which a failure is most telling."""


@dataclass(frozen=True)
class Diagnosis:
    """All findings for one device."""

    device: str
    checks: tuple[Check, ...]

    @property
    def works(self) -> bool:
        """Whether all that was asked for can work."""
        return not any(check.stops for check in self.checks)

    @property
    def problems(self) -> tuple[Check, ...]:
        """The findings that are not well."""
        return tuple(check for check in self.checks if not check.ok)

    def to_dict(self) -> dict[str, Any]:
        """The stable keys of `pfedmma doctor --json`."""
        return {
            "device": self.device,
            "works": self.works,
            "checks": [check.to_dict() for check in self.checks],
        }


def diagnose(
    device: str = "auto",
    *,
    runs: Path = Path("runs"),
    exports: Path = Path("exports"),
    progress: Progress | None = None,
) -> Diagnosis:
    """Look at the installation and the machine; takes as long as `import open_clip`.

    Args:
        device: what is to work: `auto`, `cpu`, `cuda` or `tensorrt`.
        runs: where runs are written.
        exports: where bundles are written.
        progress: told of what takes long.

    Raises:
        UsageError: an unknown device.
    """
    if device not in DEVICES:
        raise UsageError(f"Device {device!r} is unknown: expected {', '.join(DEVICES)}.")
    report = progress or Silent()
    report.note("Importing torch, and running a tiny model on each execution provider ...")
    # Started first: everything else is looked at meanwhile.
    imports = Probe("import", *IMPORTED)
    checks = [
        *guarded("packages", lambda: doctor_packages.check_packages(device)),
        *guarded("images", doctor_places.check_images),
        *guarded("embedded files", doctor_places.check_assets),
        *guarded("cpu", doctor_devices.check_cpu),
        *guarded("driver", lambda: doctor_devices.check_driver(device)),
        *guarded("cuda libraries", lambda: doctor_devices.check_libraries(device)),
        *guarded("providers", lambda: doctor_devices.check_providers(device)),
        *guarded("places", lambda: doctor_places.check_places(runs, exports)),
    ]
    loaded = guarded("imports", lambda: doctor_packages.check_imports(IMPORTED, imports.finish()))
    after = 1 + next((i for i, c in enumerate(checks) if c.name == "torch and torchvision"), -1)
    return Diagnosis(device, (*checks[:after], *loaded, *checks[after:]))
