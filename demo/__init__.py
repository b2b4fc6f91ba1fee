"""The browser demo: zero-shot CLIP beside each client's own model.

`pfedmma demo` and `python demo/app.py` start it; this package installs as `pfedmma_deploy.demo`.
It runs on an exported bundle with ONNX Runtime: torch is never imported.

    model        the bundle, its clients and classes, and the sample images that suit it
    inputs       one uploaded file, as an image and what should be said about it
    archive      many images: a zip, files, the sample
    compare, judging, gallery, clients, examples, about   what the page shows, as data
    api          the same functions for programs and for MCP
    pictures, *view*, theme        data as pictures and HTML, and their looks
    page, *_tab, components        the page itself
    app          starts it
"""

from __future__ import annotations
