"""`README.md` of a bundle: what the model is, what it was checked on, how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfedmma_deploy.export import describe
from pfedmma_deploy.runtime import bundle as names
from pfedmma_deploy.runtime.manifest import Manifest
from pfedmma_deploy.store.files import write_bytes

__all__ = ["model_card", "seal"]

_CARD = """\
# {title}

A personalized CLIP classifier: {backbone}, fine-tuned for {count} by federated learning
({method}), exported to ONNX. One file serves every client: client 0 is plain zero-shot CLIP, the
others have their own adapters, gathered inside the graph by the `client` input.

## Use

    pfedmma predict photo.jpg --model {title} --client {example} --compare

or from Python, without torch:

    from pfedmma_deploy.runtime import Classifier

    classifier = Classifier.load("{title}")
    print(classifier.predict("photo.jpg", client="{example}")[0].top)

| file | inputs | output |
|---|---|---|
{files}

Pixels are {size} x {size}, RGB, 0 to 255, channels last ({resize}, {interpolation}; the graph
normalises). Features are L2-normalised; class scores are {logit_scale:.4g} times the cosine with
the text features of {prompt}.

## Classes

{classes}

## Clients

| index | client | classes seen in training |
|---|---|---|
{clients}

## Checks

Compared with torch before publishing: {images} images over all clients and a mixed batch, largest
difference of a feature {error:.1e}, same class for {agreement:.1f} % of them.
{quality}Flavour {flavour}, precision {precision}, weights stored in {weights}, ONNX opset {opset}.
`manifest.json` has the provenance and the SHA-256 of
every file.

## Limits

The images behind the adapters were never shared, but an adapter is learned from them: treat a
client's adapter as that client's data. Accuracy holds for images like the client's own; novel
classes are answered zero-shot through the adapted towers. The backbone's licence and limits apply.
"""

_ROWS = {
    "vision_model.onnx": "| `vision_model.onnx` | `pixel_values` uint8 [batch, {s}, {s}, 3], "
    "`client` int64 [batch] | `image_embeds` float32 [batch, {d}] |",
    "text_model.onnx": "| `text_model.onnx` | `input_ids` int64 [prompts, {c}], "
    "`client` int64 [prompts] | `text_embeds` float32 [prompts, {d}] |",
    "classifier.onnx": "| `classifier.onnx` | `pixel_values`, `client` as above | "
    "`logits` float32 [batch, {n}] |",
}
MOST_ROWS = 50


def model_card(title: str, manifest: Manifest) -> str:
    """Markdown for a bundle named `title`."""
    classes, clients = manifest.class_names, manifest.clients
    settings = manifest.preprocessing
    sizes = {
        "s": settings.image_size,
        "d": manifest.embed_dim,
        "c": manifest.context_length,
        "n": len(classes),
    }
    rows = [row.format(**sizes) for name, row in _ROWS.items() if name in manifest.files]
    listed = [
        f"| {client.index} | {client.id} | {', '.join(classes[i] for i in client.seen) or '-'} |"
        for client in clients[:MOST_ROWS]
    ]
    if len(clients) > MOST_ROWS:
        listed.append(f"| ... | {len(clients) - MOST_ROWS} more in `manifest.json` | |")
    count = len(clients) - 1
    return _CARD.format(
        title=title,
        backbone=f"{manifest.backbone['name']} ({manifest.backbone['pretrained']})",
        count="one client" if count == 1 else f"{count} clients",
        method=manifest.adapter["method"],
        example=clients[-1].id,
        files="\n".join(rows),
        size=settings.image_size,
        resize={"shortest": "shorter edge resized, centre cut out"}.get(
            settings.resize_mode, f"resized: {settings.resize_mode}"
        ),
        interpolation=settings.interpolation,
        logit_scale=manifest.logit_scale,
        prompt=_prompts(manifest),
        classes=_classes(manifest),
        clients="\n".join(listed),
        images=manifest.parity["images"],
        error=manifest.parity["max_abs_error"],
        agreement=manifest.parity["top1_agreement"],
        quality=_quality(manifest),
        flavour=manifest.flavour,
        precision=manifest.precision,
        weights=manifest.weights,
        opset=manifest.opset,
    )


def seal(folder: Path, title: str, manifest: Manifest, parity: Mapping[str, Any]) -> dict[str, int]:
    """Complete a bundle whose other files are there: model card, then the manifest with all hashes.

    Returns the size of every file.
    """
    manifest = describe.with_files(manifest, folder, parity)
    write_bytes(folder / names.MODEL_CARD, model_card(title, manifest).encode())
    manifest = describe.with_files(manifest, folder, parity)
    text = json.dumps(manifest.to_dict(), indent=1, ensure_ascii=False)
    write_bytes(folder / names.MANIFEST, f"{text}\n".encode())
    names.Bundle.open(folder).verify()
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _prompts(manifest: Manifest) -> str:
    """The prompt, and that of clients who learned their own."""
    own = manifest.prompt_of(1)
    return f"`{manifest.prompt}`" + (
        "" if own == manifest.prompt else f" (clients: `{own}`, each star a learned vector)"
    )


def _quality(manifest: Manifest) -> str:
    """The decision-level report of a form less exact than fp32; nothing for fp32."""
    found = manifest.quality
    if not found:
        return ""
    text = (
        f"Judged on {found['images']} images against the exact model: same class for "
        f"{found['top1_agreement']:.1f} %, cosine of image features {found['mean_cosine']:.5f} "
        f"(least {found['least_cosine']:.5f}), largest difference of a class score "
        f"{found['max_logit_difference']:.2f}.\n\n"
        "| accuracy, % | exact | this model |\n|---|---|---|\n"
    )
    for name, before in found["before"].items():
        if before is not None:
            text += f"| {name.replace('_', ' ')} | {before:.2f} | {found['after'][name]:.2f} |\n"
    return f"{text}\n"


def _classes(manifest: Manifest) -> str:
    def listed(labels: tuple[int, ...]) -> str:
        return ", ".join(manifest.class_names[label] for label in labels)

    if not set(manifest.novel) - set(manifest.base):
        return listed(tuple(range(len(manifest.class_names))))
    return f"Trained on: {listed(manifest.base)}.\n\nNovel: {listed(manifest.novel)}."
