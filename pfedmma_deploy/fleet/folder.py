"""The operator's folder of a federation, and the invitations that sites get of it.

wards/
  fleet.json            what is trained and how, and who takes part; no secret in it
  keys/                 the authority, the server's key, the seed of the noise: nobody else's
  invitations/ward-a.invite     one file per site: hand it over as a password, then delete it
  run/                  the run folder: shared tensors and rounds, no client's adapter
  status.json           how things stand, while `pfedmma fleet serve` runs
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from cryptography import x509

from pfedmma_deploy import __version__
from pfedmma_deploy.config import TrainConfig, stored_config
from pfedmma_deploy.errors import FleetError, StoreError, UsageError, nearest
from pfedmma_deploy.fleet.keys import (
    PrivateKey,
    load_private,
    make_authority,
    make_site_key,
    write_private,
)
from pfedmma_deploy.store.files import json_bytes, parse_json, read_bytes, write_bytes
from pfedmma_deploy.store.run import Run

FORMAT: Final = "pfedmma-fleet"
INVITATION_FORMAT: Final = "pfedmma-invitation"
DEFAULT_PORT: Final = 8443
DEFAULT_ROUND_LIMIT: Final = 600.0
MAX_INVITATION: Final = 1_000_000
"""Bytes of an invitation at most: class names are the longest thing in it."""
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s/?#@\\\[\]:]+):[0-9]{1,5}")
_NOISE: Final = "noise-seed"


@dataclass(frozen=True)
class Site:
    """One site as the operator's folder knows it."""

    id: str
    """Its client id in the run."""
    index: int
    """Its place in the federation, which decides its randomness; never given to another."""
    public_key: str
    """PEM."""
    since: int = 0
    """Rounds that were done when it was invited (again): refusals before do not count."""
    is_removed: bool = False


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the operator decides and every site is told."""

    address: str
    """HOST:PORT that sites call."""
    config: TrainConfig
    """The run's options; `data` means nothing here."""
    backbone: Mapping[str, str]
    """Name, pretrained tag and fingerprint."""
    class_names: tuple[str, ...] | None
    """In class order; None: the sorted names that the sites propose."""


@dataclass(frozen=True, kw_only=True)
class Fleet(Terms):
    """What `fleet.json` holds."""

    folder: Path
    name: str
    quorum: int
    """Answers without which a round changes nothing."""
    round_limit: float
    """Seconds that a round waits for its sites."""
    sites: tuple[Site, ...]

    @classmethod
    def create(
        cls,
        folder: Path,
        address: str,
        config: TrainConfig,
        backbone: Mapping[str, str],
        class_names: Sequence[str] | None,
        quorum: int,
        round_limit: float,
    ) -> Fleet:
        """Make an empty federation: a folder with an authority of its own.

        Raises:
            FleetError: the folder holds something already.
            UsageError: the address is none that sites could call.
        """
        if not _ADDRESS.fullmatch(address):
            raise UsageError(
                "an address is HOST:PORT, such as fed.example.org:8443 or [2001:db8::1]:8443, not "
                f"{address!r}"
            )
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FleetError(
                f"{folder} is there already: choose another name, or add sites to the federation "
                f"in it with `pfedmma fleet add {folder} SITE`."
            )
        fleet = cls(
            folder=folder,
            name=folder.resolve().name,
            address=address,
            config=config,
            backbone=backbone,
            class_names=None if class_names is None else tuple(class_names),
            quorum=quorum,
            round_limit=round_limit,
            sites=(),
        )
        keys = fleet.keys
        keys.mkdir(parents=True)
        keys.chmod(0o700)
        make_authority(keys, fleet.name)
        write_private(keys / _NOISE, str(secrets.randbits(128)).encode())
        fleet.save()
        return fleet

    @classmethod
    def open(cls, folder: Path) -> Fleet:
        """Read a federation's folder.

        Raises:
            FleetError: there is none.
            StoreError: it is damaged.
        """
        path = folder / "fleet.json"
        if not path.exists():
            raise FleetError(
                f"{folder} holds no federation (no fleet.json). `pfedmma fleet new {folder} "
                "--sites A,B` makes one."
            )
        values = parse_json(read_bytes(path), path)
        if values.get("format") != FORMAT or values.get("format_version") != 1:
            raise StoreError(f"{path}: expected format {FORMAT} version 1.")
        try:
            names = values["class_names"]
            return cls(
                folder=folder,
                name=values["name"],
                address=values["address"],
                config=stored_config(values["config"], str(path)),
                backbone=values["backbone"],
                class_names=None if names is None else tuple(names),
                quorum=values["quorum"],
                round_limit=values["round_limit"],
                sites=tuple(Site(**site) for site in values["sites"]),
            )
        except (KeyError, TypeError) as error:
            raise StoreError(f"{path} is damaged: {error} is missing or unknown.") from error

    @property
    def keys(self) -> Path:
        """Where the secrets are."""
        return self.folder / "keys"

    @property
    def run_folder(self) -> Path:
        """The server's run."""
        return self.folder / "run"

    @property
    def members(self) -> list[Site]:
        """Those that were not removed, in the federation's order."""
        return [site for site in self.sites if not site.is_removed]

    @property
    def noise_seed(self) -> int:
        """Seed of the noise for differential privacy, which no site may know."""
        return int(read_bytes(self.keys / _NOISE))

    def save(self) -> None:
        """Write `fleet.json`."""
        values = {"format": FORMAT, "format_version": 1, "version": __version__}
        for name in ("name", "address", "backbone", "class_names", "quorum", "round_limit"):
            values[name] = getattr(self, name)
        values["config"] = self.config.to_dict()
        values["sites"] = [asdict(site) for site in self.sites]
        write_bytes(self.folder / "fleet.json", json_bytes(values))

    def invite(self, id: str, rounds_done: int) -> tuple[Fleet, Path]:
        """Invite a site, new or known; a known one's older invitation opens nothing any more.

        Returns:
            The federation with it, and the invitation's file.

        Raises:
            UsageError: the id cannot be a client's.
        """
        require_site_name(id)
        private, public = make_site_key()
        known = {site.id: site for site in self.sites}
        index = known[id].index if id in known else len(self.sites)
        site = Site(id, index, public, since=rounds_done)
        sites = [site if other.id == id else other for other in self.sites]
        fleet = replace(self, sites=tuple(sites if id in known else [*sites, site]))
        invitation = Invitation(
            fleet=self.name,
            site=id,
            index=index,
            address=self.address,
            authority=read_bytes(self.keys / "ca.pem").decode(),
            key=private,
            config=self.config,
            backbone=self.backbone,
            class_names=self.class_names,
        )
        file = self.folder / "invitations" / f"{id}.invite"
        invitation.write(file)
        fleet.save()
        return fleet, file

    def remove(self, id: str) -> Fleet:
        """Take a site's invitation back. Raises `UsageError` where there is no such site."""
        if id not in {site.id for site in self.members}:
            ids = [site.id for site in self.members]
            raise UsageError(
                f"{self.folder} has no site {id!r}{nearest(id, ids)} (sites: {', '.join(ids)})."
            )
        sites = [replace(s, is_removed=True) if s.id == id else s for s in self.sites]
        fleet = replace(self, sites=tuple(sites))
        fleet.save()
        (self.folder / "invitations" / f"{id}.invite").unlink(missing_ok=True)
        return fleet


def require_site_name(id: str) -> None:
    """Raises `UsageError` where this cannot be the name of a site: it becomes that of a folder."""
    if not _ID.fullmatch(id):
        raise UsageError(
            f"a site's name has letters, digits, '.', '_' and '-' (64 at most), not {id!r}"
        )


def rounds_done(fleet: Fleet) -> int:
    """Finished rounds of the server's run; 0 where there is none yet."""
    folder = fleet.run_folder
    return Run.open(folder).checkpoint.round + 1 if (folder / "manifest.json").exists() else 0


@dataclass(frozen=True, kw_only=True)
class Invitation(Terms):
    """All that a site needs to take part, and the key that lets it."""

    fleet: str
    site: str
    index: int
    authority: str
    """PEM of the certificate that the server's must be signed by."""
    key: str
    """PEM of the site's private key."""

    @property
    def private_key(self) -> PrivateKey:
        """The site's key."""
        return load_private(self.key)

    def write(self, file: Path) -> None:
        """One file, readable for its owner only."""
        values = {"format": INVITATION_FORMAT, "format_version": 1, "version": __version__}
        values |= {**asdict(self), "config": self.config.to_dict()}
        write_private(file, json_bytes(values))

    @classmethod
    def read(cls, file: Path) -> Invitation:
        """Read an invitation.

        Raises:
            FleetError: it is none, or of another version.
        """
        advice = "Ask the operator for the file that `pfedmma fleet new` or `add` wrote."
        try:
            with file.open("rb") as handle:
                data = handle.read(MAX_INVITATION + 1)
        except OSError as error:
            raise FleetError(f"invitation {file}: {error.strerror}. {advice}") from error
        if len(data) > MAX_INVITATION:
            raise FleetError(
                f"{file} is no invitation: it has more than {MAX_INVITATION:,} bytes. {advice}"
            )
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise FleetError(f"{file} is no invitation: it is not JSON. {advice}") from error
        if not isinstance(values, dict) or values.get("format") != INVITATION_FORMAT:
            raise FleetError(f"{file} is no invitation. {advice}")
        if values.get("format_version") != 1:
            raise FleetError(
                f"{file} is of version {values.get('format_version')}, expected 1: install the "
                f"pfedmma-deploy that made it ({values.get('version')}), or ask for another."
            )
        try:
            names = values["class_names"]
            found = cls(
                fleet=str(values["fleet"]),
                site=str(values["site"]),
                index=int(values["index"]),
                address=str(values["address"]),
                authority=str(values["authority"]),
                key=str(values["key"]),
                config=stored_config(values["config"], str(file)),
                backbone={name: str(value) for name, value in values["backbone"].items()},
                class_names=None if names is None else tuple(map(str, names)),
            )
            found._check()
        except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
            raise FleetError(f"{file} is damaged ({error}). {advice}") from error
        return found

    def _check(self) -> None:
        """Raises `ValueError` for values that name files, hosts or keys and are none."""
        # Both become parts of paths.
        if not _ID.fullmatch(self.site):
            raise ValueError(f"site {self.site!r}")
        if Path(self.fleet).name != self.fleet or not self.fleet or not self.fleet.isprintable():
            raise ValueError(f"federation {self.fleet!r}")
        if not _ADDRESS.fullmatch(self.address):
            raise ValueError(f"address {self.address!r}, expected HOST:PORT")
        if self.index < 0:
            raise ValueError(f"index {self.index}")
        x509.load_pem_x509_certificate(self.authority.encode())
        load_private(self.key)
