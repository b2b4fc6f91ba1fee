"""What the models are, where the figures come from, and what they do not show."""

from __future__ import annotations

from typing import Any

from .model import DemoModel

__all__ = ["about_dict", "about_text"]

EMBEDDED = "pfedmma-tiny"


def about_text(model: DemoModel) -> str:
    """Markdown for the page."""
    manifest = model.manifest
    backbone, parity = manifest.backbone, manifest.parity
    name = f"`{backbone['name']}`"
    if backbone.get("pretrained"):
        name += f" ({backbone['pretrained']})"
    clients = len(model.clients)
    checked = ""
    if "images" in parity:
        checked = (
            f" Before it got its name it was compared with torch on {parity['images']:,} images: "
            f"same answer on {parity['top1_agreement']:.1f} %, largest difference of a feature "
            f"{parity['max_abs_error']:.1e}."
        )
    small = (
        "\n- The embedded backbone is a small distilled model that sees 32 by 32 pixels. It shows "
        "how the parts work together, not what a full CLIP reaches. Its card stands beside it in "
        "`pfedmma_deploy/assets/pfedmma-tiny`."
        if backbone["name"] == EMBEDDED
        else ""
    )
    return f"""\
### What stands side by side

**Zero-shot CLIP** is {name} as it was before training: it compares an image with the text
“{manifest.prompt.replace("{}", "[class name]")}” for every class name and takes the closest.
**Personalized** is the same frozen model with small adapters in both towers, which one client
trained on its own images in a federation of {clients}. Only one small projection, shared by all
clients, ever travelled; images and the rest of the adapters stayed where they are
([pFedMMA, arXiv 2507.05394](https://arxiv.org/abs/2507.05394)).

All {clients} clients are in **one ONNX file**: each image of a batch says by a number whose model
answers, and number 0 is zero-shot. So a comparison costs one more row of a batch, not another
model. Nothing on this page needs torch; it runs with ONNX Runtime on
**{model.classifier.device.upper()}** ({model.classifier.provider}),
flavour `{manifest.flavour}`, precision `{manifest.precision}`, weights stored in
`{manifest.weights}`.{checked}

### Where the figures come from

- **Compare** and **Gallery** compute every answer now, with the bundle `{model.title}`, on this
  computer. Confidences are a softmax over the names of the class set alone.
- **Clients** shows what was measured when the bundle was exported: *local* is each client's own
  test images, *base* those of all classes that some client trains on (both among the base names),
  *novel* those of classes that nobody trains on (among the novel names). They are the figures of
  `pfedmma evaluate`. The gallery shows all classes equally often, a client's own test images are
  as uneven as its training images: so *seen here* in the gallery and *local* differ.
- **Examples** are chosen by rule: the first test image, classes in turn, for which the words under
  it are true. Right and wrong ones alike.
- The client shown first is the one that gains most on its own classes while its novel accuracy
  stays within a point of zero-shot.

### Limits

- Personalization is for the client's own classes. On classes that it never saw it may win or lose
  a little: look at *Zero-shot right, personalized wrong* in the gallery.
- With *All classes* a personalized model leans towards the classes it knows; base and novel names
  apart is how accuracy is measured.
- A confidence is not a probability of being right, and an image of none of the classes gets an
  answer all the same.{small}
- An adapter is learned from images: treat a client's adapter as that client's data.

Pictures that you drop stay on this computer and are deleted after a day; this page asks nothing
of the network.
"""


def about_dict(model: DemoModel) -> dict[str, Any]:
    """JSON-ready: what the bundle says about itself."""
    manifest = model.manifest
    return {
        "bundle": model.title,
        "backbone": dict(manifest.backbone),
        "adapter": dict(manifest.adapter),
        "prompt": manifest.prompt,
        "logit_scale": manifest.logit_scale,
        "precision": manifest.precision,
        "weights": manifest.weights,
        "flavour": manifest.flavour,
        "device": model.classifier.device,
        "provider": model.classifier.provider,
        "parity": dict(manifest.parity),
        "text": about_text(model),
    }
