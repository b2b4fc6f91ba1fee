"""`pfedmma demo`: zero-shot CLIP beside the personalized models, in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from .options import find_bundle, flag, switch, with_output
from .output import Output


@with_output
def demo(
    output: Output,
    model: Annotated[
        Path | None,
        flag("Exported bundle. [default: exports/quickstart, else the newest in exports/]", "DIR"),
    ] = None,
    port: Annotated[
        int | None, flag("Port. [default: the first free one from 7860]", "N", min=1, max=65535)
    ] = None,
    share: Annotated[
        bool,
        switch("--share", "Also give it a public address for 72 hours, through Gradio's servers."),
    ] = False,
    mcp: Annotated[bool, switch("--mcp", "Also offer its functions as MCP tools.")] = False,
    device: Annotated[str, flag("Where to compute.", "auto|cpu|cuda")] = "auto",
) -> None:
    """Show zero-shot and personalized models in the browser.

    Side by side, on seen and novel classes. The page is served on this machine only, without
    torch, until Ctrl-C.

    \b
    Examples:
      pfedmma demo
      pfedmma demo --model exports/sites --port 8080
      pfedmma demo --mcp
    """
    from pfedmma_deploy.demo.app import default_bundle, launch

    folder = model or default_bundle() or find_bundle(None)
    output.note(f"Opening {folder} ...")
    running = launch(folder, port=port, device=device, share=share, mcp=mcp)
    output.say(f"The demo of {folder} runs on {running.url} (Ctrl-C ends it)")
    if running.share_url:
        output.say(f"Public, for anybody who has the address: {running.share_url}")
    if running.mcp_url:
        output.say(f"MCP tools: {running.mcp_url}")
    output.result(
        {
            "model": str(folder),
            "url": running.url,
            "share_url": running.share_url,
            "mcp_url": running.mcp_url,
        }
    )
    output.stdout.flush()
    running.wait()
