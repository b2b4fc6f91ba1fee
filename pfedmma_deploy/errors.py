"""Every error that this package raises on purpose.

    PfedmmaError            something a user can act on; printed without a traceback
     +- UsageError          options that contradict each other or name nothing (exit code 2)
     +- DataError           images, folders, classes, clients
     |   +- ImageError      one image that cannot be read
     +- BackboneError       a model that is absent, not adaptable or not the expected one
     +- StoreError          run folders: missing, damaged, of another version
     +- TrainingError       training whose numbers stopped being finite
     +- ExportError         a bundle that could not be made or did not pass its checks
     +- BundleError         an exported bundle that is missing, damaged or of another version
     +- FleetError          a federation across machines: invitations, connections, messages
     +- DeviceError         a device or execution provider that cannot be used

A message names the thing, what was expected, what was found and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PfedmmaError(Exception):
    """Base of all errors of this package; `str(error)` is a sentence for the user."""


class UsageError(PfedmmaError):
    """Options that contradict each other, are out of range or name nothing."""


class DataError(PfedmmaError):
    """Images, folders, classes or clients that cannot be trained on as they are."""


class ImageError(DataError):
    """One image that cannot be read; the message is the reason without the path."""


class BackboneError(PfedmmaError):
    """A backbone that is absent, cannot be adapted or is not the one a file was made for."""


class StoreError(PfedmmaError):
    """A run folder that is missing, damaged or of another format version."""


class TrainingError(PfedmmaError):
    """A training whose loss or weights stopped being finite numbers."""


class ExportError(PfedmmaError):
    """A bundle that could not be made or did not pass its checks."""


class BundleError(PfedmmaError):
    """An exported bundle that is missing, damaged or of another format version."""


class FleetError(PfedmmaError):
    """An invitation, a connection or a message of a federation that cannot be accepted."""


class DeviceError(PfedmmaError):
    """A device or execution provider that was asked for and cannot be used."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
