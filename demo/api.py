"""The demo's functions for programs (`gradio_client`) and, with `--mcp`, as tools.

Each endpoint has fields of its own that the page does not show. The docstrings below are what
programs are told; Gradio reads one line per argument.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import api

from pfedmma_deploy.errors import PfedmmaError

from . import views
from .compare import compare
from .components import dropdown, photo, photos
from .gallery import FILTERS, NAME_SETS, Filter, Gallery, GalleryNames, judge
from .model import CLASS_SETS, ClassSet, DemoModel, client_choices, clients_dict
from .uploads import Upload, open_images, sample_items


def add_api(model: DemoModel, first: str) -> None:
    """Add the endpoints `/compare`, `/gallery`, `/clients` and `/about` to the page being built."""
    # An endpoint has the fields of the page that it is connected to, seen or not.
    with gr.Column(visible=False, elem_id="api"):
        _add_compare(model, first)
        _add_gallery(model, first)
        _add_facts(model)


def judge_source(
    model: DemoModel,
    files: Sequence[Upload] | None,
    count: int,
    client: str,
    names: GalleryNames,
    progress: Any = None,
) -> Gallery:
    """Judge uploaded files, or, with None, the first `count` test images of the sample.

    Raises:
        PfedmmaError: no images, or a client or names that do not exist.
    """
    if files is None:
        items = sample_items(model, count)
        return judge(model, items, client, names=names, progress=progress)
    with open_images(model, files) as (items, remarks):
        return judge(model, items, client, names=names, remarks=remarks, progress=progress)


def write_csv(gallery: Gallery, folder: str | Path) -> str:
    """The gallery as a file of its own below `folder`; returns its path."""
    inner = Path(tempfile.mkdtemp(dir=folder))
    file = inner / f"gallery-client-{''.join(c for c in gallery.client if c.isalnum())}.csv"
    file.write_text(gallery.csv(), encoding="utf-8")
    return str(file)


@contextmanager
def _sentences() -> Iterator[None]:
    """A user's mistake becomes the sentence that a program is told; no traceback in the log."""
    try:
        yield
    except PfedmmaError as error:
        raise gr.Error(str(error), print_exception=False) from None


def _add_compare(model: DemoModel, first: str) -> None:
    def compare_image(
        image: str | None,
        client: str,
        class_set: ClassSet = "all",
        typed: str = "",
        other: str = "",
        truth: str = "",
        strength: float | None = None,
    ) -> dict[str, Any]:
        """Ask zero-shot CLIP and a client's personalized model what an image shows.

        Args:
            image: the image file (JPEG, PNG, WebP, BMP), or a data: address; no http addresses.
            client: id of the client whose personalized model is asked.
            class_set: all, seen (by this client), base (by some client), novel (by none) or typed.
            typed: with class_set "typed", at least two class names with commas between them.
            other: id of one more client to ask; empty for none.
            truth: name of the true class, where it is known; empty otherwise.
            strength: 0 is zero-shot, 1 the client as trained, 1.5 the most; none is its default.

        Returns:
            Per model the five most probable classes with probability and kind (seen, elsewhere,
            novel, typed); whether the two models agree; device, precision and milliseconds.
        """
        if image is None:
            raise gr.Error("Give an image file.", print_exception=False)
        with _sentences():
            found = compare(model, Path(image), client, class_set, typed, other, truth, strength)
        return asdict(found)

    ids = client_choices(model)
    fields = [
        photo(label="image", elem_id="api-compare-image"),
        dropdown("client", ids, first, "api-compare-client"),
        dropdown("class_set", CLASS_SETS, "all", "api-class-set"),
        gr.Textbox("", label="typed", elem_id="api-typed"),
        gr.Textbox("", label="other", elem_id="api-other"),
        gr.Textbox("", label="truth", elem_id="api-truth"),
        gr.Number(None, label="strength", elem_id="api-strength"),
    ]
    answer = gr.JSON(label="comparison", elem_id="api-comparison")
    button = gr.Button("compare", elem_id="api-compare")
    button.click(compare_image, fields, answer, api_name="compare", concurrency_limit=4)


def _add_gallery(model: DemoModel, first: str) -> None:
    def judge_images(
        files: list[str] | None,
        client: str,
        names: GalleryNames = "measured",
        count: float = 100,
        filter: Filter = "all",
    ) -> tuple[dict[str, Any], str]:
        """Judge many images with zero-shot CLIP and with a client's personalized model.

        Args:
            files: image files, or zips with one folder per class; none for the sample's images.
            client: id of the client whose personalized model is asked.
            names: measured (base names for base images, novel for novel), all, seen, base or novel.
            count: how many test images of the sample, where no files are given.
            filter: all, differ, gained (only personalized right), lost (only zero-shot) or wrong.

        Returns:
            Accuracy by group (seen, elsewhere, novel, all) for both models, the images with both
            answers, what was skipped and why; and all answers as a CSV file.
        """
        given = list(map(Upload.plain, files or []))
        with _sentences():
            gallery = judge_source(model, given or None, int(count), client, names)
            summary = gallery.to_dict(filter)
        # Below Gradio's own folder, since it hands out files of no other.
        return summary, write_csv(gallery, table.GRADIO_CACHE)

    ids = client_choices(model)
    fields = [
        photos(label="files", elem_id="api-gallery-files"),
        dropdown("client", ids, first, "api-gallery-client"),
        dropdown("names", NAME_SETS, "measured", "api-names"),
        gr.Number(100, precision=0, minimum=1, label="count", elem_id="api-count"),
        dropdown("filter", FILTERS, "all", "api-filter"),
    ]
    answer = gr.JSON(label="gallery", elem_id="api-gallery")
    table = gr.File(label="csv", elem_id="api-gallery-csv")
    button = gr.Button("gallery", elem_id="api-judge")
    button.click(judge_images, fields, [answer, table], api_name="gallery")


def _add_facts(model: DemoModel) -> None:
    def list_clients() -> dict[str, Any]:
        """List the clients with their classes, accuracies and training traffic.

        Returns:
            Per client its id, the classes it trained on, its number of training images, and local,
            base and novel accuracy in percent for zero-shot CLIP and for its personalized model;
            the class names; bytes sent per client and round, and in all.
        """
        return clients_dict(model)

    def describe_model() -> dict[str, Any]:
        """Describe the model: backbone, adapters, precision, device, checks and limits."""
        manifest, classifier = model.manifest, model.classifier
        return {
            "bundle": model.title,
            "backbone": dict(manifest.backbone),
            "adapter": dict(manifest.adapter),
            "prompt": manifest.prompt,
            "logit_scale": manifest.logit_scale,
            "precision": manifest.precision,
            "weights": manifest.weights,
            "flavour": manifest.flavour,
            "device": classifier.device,
            "provider": classifier.provider,
            "parity": dict(manifest.parity),
            "text": views.about(model),
        }

    api(list_clients, api_name="clients")
    api(describe_model, api_name="about")
