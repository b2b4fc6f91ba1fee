"""Starts the demo. `python demo/app.py` is `pfedmma demo`, with the same options."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import runpy
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pfedmma_deploy.errors import UsageError

if TYPE_CHECKING:
    import gradio as gr

HOST = "127.0.0.1"
DEFAULT = Path("exports", "quickstart")
PORTS = range(7860, 7960)
MOST_UPLOAD = "200mb"


def default_bundle() -> Path | None:
    """The committed quickstart bundle: below this folder, or in the checkout of this package."""
    checkout = Path(__file__).resolve().parents[1]
    for root in (Path(), checkout, checkout.parent):
        if (root / DEFAULT / "manifest.json").is_file():
            return root / DEFAULT
    return None


@dataclass(frozen=True)
class RunningDemo:
    """A page that is being served."""

    page: gr.Blocks
    url: str
    share_url: str | None
    """Public address, with `share`."""
    mcp_url: str | None
    """Where MCP clients connect, with `mcp`."""

    def wait(self) -> None:
        """Serve until Ctrl-C, then close."""
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Stop serving."""
        self.page.close(verbose=False)


def launch(
    folder: Path,
    *,
    port: int | None = None,
    device: str = "auto",
    share: bool = False,
    mcp: bool = False,
) -> RunningDemo:
    """Open the bundle in `folder` and serve the page on this machine.

    Args:
        folder: an exported bundle.
        port: port to listen on; None takes the first free one from 7860.
        device: `auto`, `cpu` or `cuda`.
        share: also give it a public address, through Gradio's servers.
        mcp: also offer the functions as MCP tools.

    Raises:
        PfedmmaError: the bundle cannot be opened, the port is taken, or a package is missing.
    """
    if mcp and importlib.util.find_spec("mcp") is None:
        raise UsageError(
            "--mcp needs the package mcp, which is not installed. Install it with\n"
            f"  {sys.executable} -m pip install 'gradio[mcp]'"
        )
    # Before Gradio is imported, which reads them.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from .model import DemoModel

    # First what can go wrong: a page takes seconds to build.
    model = DemoModel.load(folder, device)
    chosen = free_port(port)
    from .components import asset
    from .page import HEAD, build_page, theme

    page = build_page(model)
    _, url, share_url = page.queue(max_size=64, api_open=True).launch(
        server_name=HOST,
        server_port=chosen,
        share=share,
        mcp_server=mcp,
        theme=theme(),
        css=asset("style.css"),
        head=HEAD,
        quiet=True,
        # `RunningDemo.wait` waits, once the address has been printed.
        prevent_thread_lock=True,
        # No file is served but what was uploaded or computed here.
        allowed_paths=[],
        max_file_size=MOST_UPLOAD,
        footer_links=["api", "settings"],
        # Nothing of what visitors did is kept or shown to others.
        run_history=False,
        enable_monitoring=False,
        # Rendering on the server would need Node.js.
        ssr_mode=False,
        pwa=False,
        inbrowser=False,
    )
    mcp_url = f"{url.rstrip('/')}/gradio_api/mcp/" if mcp else None
    return RunningDemo(page, url, share_url or None, mcp_url)


def free_port(port: int | None) -> int:
    """`port`, or the first free one from 7860. Raises `UsageError` where it is taken."""
    for candidate in PORTS if port is None else [port]:
        # Listened on for a moment: some systems let two programs bind the same port.
        with contextlib.suppress(OSError), socket.create_server((HOST, candidate)):
            return candidate
    if port is None:
        raise UsageError(f"No port from {PORTS[0]} to {PORTS[-1]} is free: name one with --port.")
    raise UsageError(
        f"Port {port} cannot be used: something else listens there, or it is not allowed. "
        "Choose another with --port, or leave it out."
    )


if __name__ == "__main__":
    sys.argv[1:1] = ["demo"]
    runpy.run_module("pfedmma_deploy.cli", run_name="__main__")
