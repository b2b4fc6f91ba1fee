"""`pfedmma fleet`: a federation of real sites, on Flower."""

from __future__ import annotations

import shlex
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfedmma_deploy.errors import FleetError, UsageError

from .fleet_table import live_table, show
from .options import Preset, flag, split_names, switch, with_output
from .output import Output, print_evaluation

if TYPE_CHECKING:
    from pfedmma_deploy.config import TrainConfig
    from pfedmma_deploy.fleet.folder import Fleet
    from pfedmma_deploy.fleet.site import Offer

app = typer.Typer(
    no_args_is_help=True,
    help="Train across machines: the images stay at the sites, the shared tensors travel.",
)
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The operator's folder.")]
SiteName = Annotated[str, typer.Argument(metavar="SITE", help="Name of a site.")]


@app.command()
@with_output
def new(
    output: Output,
    folder: Folder,
    sites: Annotated[str, flag("Names of the sites, with commas between.", "A,B,...")],
    config: Annotated[Path | None, flag("Options of the run, as for `train`.", "FILE.toml")] = None,
    preset: Preset = None,
    address: Annotated[
        str | None,
        flag("Where sites call this machine. [default: its name, port 8443]", "HOST:PORT"),
    ] = None,
    class_names: Annotated[
        str | None,
        flag("The classes, in order. [default: those that the sites propose]", "A,B,..."),
    ] = None,
    quorum: Annotated[
        int | None,
        flag("Answers without which a round does not count. [default: most sites]", "N"),
    ] = None,
    round_limit: Annotated[
        float, flag("Seconds that a round waits for its sites.", "SECONDS")
    ] = 600.0,
) -> None:
    """Make a federation of sites.

    Writes certificates, keys, and one invitation file per site. Hand each site its file over a
    channel that you trust: who has it can join as that site.

    \b
    Examples:
      pfedmma fleet new wards --config run.toml --sites ward-a,ward-b,ward-c
      pfedmma fleet new wards --preset quickstart --sites a,b --address fed.example.org:8443
    """
    names = split_names(sites) or []
    if not names or len(set(names)) < len(names):
        raise UsageError(f"--sites takes different names such as ward-a,ward-b, not {sites!r}")
    resolved = _options(config, preset, output)
    _fleet_extra()
    from pfedmma_deploy.federated.rounds import clients_in_round

    chosen = clients_in_round(resolved.clients_per_round, len(names))
    if round_limit <= 0 or (quorum is not None and not 1 <= quorum <= chosen):
        raise UsageError(
            "--round-limit must be above 0, and --quorum from 1 to the number of sites that train"
            f" in a round ({chosen})"
        )
    from pfedmma_deploy.backbone.loading import load_backbone
    from pfedmma_deploy.federated.session import open_method
    from pfedmma_deploy.federated.train import note_rule
    from pfedmma_deploy.fleet.folder import DEFAULT_PORT, Fleet, require_site_name

    for name in names:
        require_site_name(name)
    open_method(resolved)
    note_rule(resolved, len(names), output.progress)
    backbone = load_backbone(resolved.backbone, resolved.pretrained, device="cpu")
    made = Fleet.create(
        folder,
        _address(address, DEFAULT_PORT),
        resolved,
        {
            "name": backbone.name,
            "pretrained": backbone.pretrained,
            "fingerprint": backbone.fingerprint,
        },
        split_names(class_names),
        chosen // 2 + 1 if quorum is None else quorum,
        round_limit,
    )
    files = {}
    # In the order in which a folder of folders is read, so that a simulation has the same.
    for name in sorted(names):
        made, file = made.invite(name, 0)
        files[name] = str(file)
        output.say(f"Invitation of {name}: {file}")
    output.say(f"Sites will call {made.address}.")
    output.note(
        f"Next: pfedmma fleet serve {folder}; at a site: pfedmma fleet join FILE --data DIR"
    )
    output.result({"fleet": str(folder), "address": made.address, "invitations": files})


@app.command()
@with_output
def add(output: Output, folder: Folder, site: SiteName) -> None:
    """Invite one more site, or one again.

    It takes part from the next round on. Of a site that is invited again the older invitation
    opens nothing any more, and refusals before do not count.

    \b
    Examples:
      pfedmma fleet add wards ward-d
    """
    fleet = _open(folder)
    from pfedmma_deploy.fleet.folder import rounds_done

    _, file = fleet.invite(site, rounds_done(fleet))
    output.say(f"Invitation of {site}: {file}")
    output.result({"fleet": str(folder), "invitations": {site: str(file)}})


@app.command()
@with_output
def remove(output: Output, folder: Folder, site: SiteName) -> None:
    """Take a site's invitation back.

    A server that runs notices within a second.

    \b
    Examples:
      pfedmma fleet remove wards ward-d
    """
    fleet = _open(folder).remove(site)
    output.say(f"{site} is removed from {folder}.")
    output.result({"fleet": str(folder), "sites": [each.id for each in fleet.members]})


@app.command()
@with_output
def serve(
    output: Output,
    folder: Folder,
    listen: Annotated[
        str | None,
        flag("Where to listen. [default: all of this machine's addresses]", "HOST:PORT"),
    ] = None,
    start_with: Annotated[
        int | None,
        flag("Sites to wait for before the first round. [default: all]", "N"),
    ] = None,
) -> None:
    """Wait for the sites, and train with them.

    Ends with the run folder FOLDER/run. Stop with Ctrl-C at any time and start it again: it
    continues after the last finished round.

    \b
    Examples:
      pfedmma fleet serve wards
      pfedmma fleet serve wards --listen 10.0.0.5:8443 --start-with 2
    """
    fleet = _open(folder)
    from pfedmma_deploy.fleet.server import serve as serve_fleet

    host, port = _split_address(listen or f"0.0.0.0:{fleet.address.rpartition(':')[2]}")
    if start_with is not None and not 1 <= start_with <= len(fleet.members):
        raise UsageError(
            f"--start-with must be from 1 to {len(fleet.members)}, the sites there are"
        )
    with live_table(output) as watch:
        try:
            found = serve_fleet(
                fleet,
                host=host,
                port=port,
                start_with=start_with,
                watch=watch,
                listening=lambda opened: output.note(f"Listening on {host}:{opened}."),
            )
        except KeyboardInterrupt:
            again = ["pfedmma", "fleet", "serve", str(folder)]
            again += ["--listen", listen] if listen else []
            output.note(f"Stopped. Continue with: {shlex.join(again)}")
            raise typer.Exit(130) from None
    show(output, found.status)
    output.say(f"Run: {found.run.folder} (shared tensors and rounds; no client's adapter)")
    privacy = found.run.manifest.get("privacy")
    if privacy is not None:
        output.say(
            f"Differential privacy: epsilon {privacy['epsilon']:.2f} at delta {privacy['delta']:g}."
        )
    output.note(
        f"A site may hand you its folder clients/SITE: pfedmma fleet accept {folder} SITE_FOLDER,"
        f" then pfedmma export --run {found.run.folder}"
    )
    output.result(
        {
            **found.status.to_dict(),
            "run": str(found.run.folder),
            "seconds": found.seconds,
            "privacy": privacy,
        }
    )


@app.command()
@with_output
def join(
    output: Output,
    invitation: Annotated[
        Path, typer.Argument(metavar="INVITATION", help="The file that the operator sent.")
    ],
    data: Annotated[str, flag("This site's images: one folder per class.", "DIR")],
    out: Annotated[Path | None, flag("Run folder. [default: runs/FEDERATION-SITE]", "DIR")] = None,
    yes: Annotated[bool, switch("--yes", "Do not ask before anything is sent.")] = False,
) -> None:
    """Take part with the images in --data.

    They stay here. Says what will leave this machine and what never does, asks once, and trains
    when the server asks. Stop with Ctrl-C at any time and give the same command again.

    \b
    Examples:
      pfedmma fleet join ward-a.invite --data photos
    """
    _fleet_extra()
    from pfedmma_deploy.fleet.folder import Invitation
    from pfedmma_deploy.fleet.site import prepare

    read = Invitation.read(invitation)
    folder = out or Path("runs", f"{read.fleet}-{read.site}")
    site = prepare(read, data, folder, output.progress)
    _explain(output, site.offer(), data)
    if not yes and not _agreed():
        output.note("Nothing was sent. Where nobody can be asked, --yes agrees beforehand.")
        raise typer.Exit(1)
    try:
        run = site.take_part()
    except KeyboardInterrupt:
        again = ["pfedmma", "fleet", "join", str(invitation), "--data", data]
        again += ["--out", str(out)] if out else []
        output.note(f"Stopped. Continue with: {shlex.join(again)}")
        raise typer.Exit(130) from None
    output.say(f"Run: {run.folder} (this site's own model in clients/{read.site})")
    output.note(
        f"Next: pfedmma personalize --run {run.folder} --client {read.site}, "
        f"pfedmma evaluate --run {run.folder}, pfedmma export --run {run.folder}"
    )
    output.result({"run": str(run.folder), "site": read.site, "rounds": run.rounds})


@app.command()
@with_output
def status(output: Output, folder: Folder) -> None:
    """Show how a federation stands.

    Who is there, how far the training is, who was refused and why.

    \b
    Examples:
      pfedmma fleet status wards
      pfedmma fleet status wards --json
    """
    fleet = _open(folder)
    from pfedmma_deploy.fleet.status import FleetStatus

    found = FleetStatus.read(folder)
    if found is None:
        found = FleetStatus(fleet.name, fleet.address, fleet.config.rounds, stage="not started")
        for site in fleet.members:
            found.site(site.id)
    show(output, found)
    output.result(found.to_dict())


@app.command()
@with_output
def accept(
    output: Output,
    folder: Folder,
    client: Annotated[
        Path,
        typer.Argument(metavar="CLIENT_DIR", help="Client folder from a site."),
    ],
) -> None:
    """Take in a client that its site handed over.

    It is checked and put into FOLDER/run, for `pfedmma export`.

    \b
    Examples:
      pfedmma fleet accept wards from-ward-a/clients/ward-a
    """
    fleet = _open(folder)
    from pfedmma_deploy.fleet.handed_over import accept as accept_client

    run = accept_client(fleet, client)
    output.say(f"{run.folder} now has the clients {', '.join(run.client_ids)}.")
    output.note(f"Next: pfedmma export --run {run.folder}")
    output.result({"run": str(run.folder), "clients": run.client_ids})


@app.command()
@with_output
def rehearse(
    output: Output,
    sites: Annotated[int, flag("Number of sites.", "N")] = 3,
    out: Annotated[
        Path | None, flag("Folder for all of it. [default: rehearsal, or a free number]", "DIR")
    ] = None,
) -> None:
    """Play a federation on this machine.

    Operator and sites are real processes, with TLS and keys. The sites share out the embedded
    sample. What they end with is compared, bit for bit, with `pfedmma train` on the same folders.

    \b
    Examples:
      pfedmma fleet rehearse
      pfedmma fleet rehearse --sites 2 --json
    """
    _fleet_extra()
    from pfedmma_deploy.fleet.rehearse import rehearse as play

    values = play(sites, out or _free("rehearsal"), output.progress)
    title = f"Means over {sites} sites (in {values['folder']})"
    print_evaluation(output, values, title)
    same = "bit-identical to" if values["identical_to_simulation"] else "NOT the same as"
    output.say(f"What the sites have is {same} pfedmma train on the same folders.")
    output.say(
        f"Per site and round: {values['bytes_up_per_client_round']:,} bytes of shared tensors each"
        f" way, {values['wire_bytes_per_client_round']:,.0f} bytes of HTTP in all, both ways."
    )
    output.say(f"Seconds: {values['seconds']:.0f}.")
    output.result(values)


def _options(file: Path | None, preset: str | None, output: Output) -> TrainConfig:
    """The run's options: those of the file and preset, under what a federation of sites implies."""
    from pfedmma_deploy.config import read_changes
    from pfedmma_deploy.methods.registry import resolve_run

    fixed: dict[str, Any] = {"data": "the sites", "partition": "folders"}
    given = read_changes({}, file, preset)
    for warning in given.warnings:
        output.note(f"warning: {warning}")
    for name in ("data", "partition", "clients", "clients_file", "unseen_domain", "superclasses"):
        if name in given.given:
            raise UsageError(
                f"{file} names {name}, which a federation of sites does not have: each site brings"
                " its own images. Leave it out"
            )
    # All classes, where nobody says otherwise: half of them would be kept for a comparison.
    if "classes" not in given.given:
        fixed["classes"] = "all"
    return resolve_run(read_changes(fixed, file, preset))


def _address(given: str | None, port: int) -> str:
    address = given or f"{socket.getfqdn()}:{port}"
    _split_address(address)
    return address


def _split_address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"an address is HOST:PORT, such as fed.example.org:8443, not {text!r}")
    return host.strip("[]"), int(port)


def _open(folder: Path) -> Fleet:
    _fleet_extra()
    from pfedmma_deploy.fleet.folder import Fleet

    return Fleet.open(folder)


def _fleet_extra() -> None:
    """Raises `FleetError` naming the command that installs what is missing."""
    from importlib.util import find_spec

    missing = [name for name in ("flwr", "cryptography") if find_spec(name) is None]
    if missing:
        raise FleetError(
            f"Federations across machines need {' and '.join(missing)}, which is not installed: "
            "pip install 'pfedmma-deploy[fleet]'"
        )


def _free(name: str) -> Path:
    folder, number = Path(name), 1
    while folder.exists():
        number += 1
        folder = Path(f"{name}-{number}")
    return folder


def _explain(output: Output, offer: Offer, data: str) -> None:
    """What leaves and what stays, in numbers."""
    invitation = offer.invitation
    config = invitation.config
    for warning in offer.warnings:
        output.note(f"warning: {warning}")
    output.note(
        f"Federation {invitation.fleet} at {invitation.address}, as site {invitation.site}: "
        f"{config.method}, {config.rounds} rounds."
    )
    output.note(
        f"{data}: {offer.train} images to train on, {offer.val} to validate, {offer.test} to test, "
        f"of {len(offer.class_names)} classes."
    )
    names = f"; once, the class names ({', '.join(offer.class_names)})" if offer.sends_names else ""
    output.note(
        f"Leaves this machine: {offer.bytes_up:,} bytes of shared tensors per round "
        f"({offer.shared}), with the number of training images, the mean loss and the validation "
        f"accuracy{names}."
    )
    if config.dp_clip is not None:
        output.note(
            "Differential privacy: the server limits each site's update and adds noise to their "
            f"mean (clip {config.dp_clip:g}, noise {config.dp_noise:g}); it sees the updates."
        )
    output.note(
        f"Never leaves: the images, their names and sizes, this site's own layers "
        f"({offer.bytes_kept:,} bytes), the optimizer's state."
    )


def _agreed() -> bool:
    try:
        return typer.confirm("Take part?", default=False, err=True)
    except typer.Abort:  # nobody there to answer
        return False
