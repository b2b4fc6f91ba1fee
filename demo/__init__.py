"""The browser demo: zero-shot CLIP beside each client's own model.

`pfedmma demo` and `python demo/app.py` start it; this package installs as `pfedmma_deploy.demo`.
It runs on an exported bundle with ONNX Runtime: torch is never imported.

    model                the bundle, its clients and classes, and the sample images that suit it
    uploads              files that somebody gave, one or many, as images
    compare, gallery     what the models say about one image and about many, as data
    views                that as HTML (from assets/demo) and pictures
    page, tabs           the page; components: its upload fields
    api                  the same functions for programs and for MCP
    app                  starts it
"""

from __future__ import annotations
