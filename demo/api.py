"""The demo's functions for programs (`gradio_client`) and, with `--mcp`, as tools.

Each endpoint has fields of its own that the page does not show. The docstrings below are what
programs are told; Gradio reads one line per argument.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from gradio.events import api

from pfedmma_deploy.errors import PfedmmaError

from .about import about_dict
from .archive import Upload
from .clients import clients_dict
from .compare import compare
from .components import photo, photos
from .gallery import FILTERS, NAME_SETS, Filter, GalleryNames
from .gallery_tab import judge_source, write_csv
from .model import CLASS_SETS, ClassSet, DemoModel

__all__ = ["add_api"]

Value = TypeVar("Value")


def add_api(model: DemoModel, first: str) -> None:
    """Add the endpoints `/compare`, `/gallery`, `/clients` and `/about` to the page being built."""
    with gr.Column(visible=False, elem_id="api"):
        _add_compare(model, first)
        _add_gallery(model, first)
        _add_facts(model)


def _sentence(call: Callable[[], Value]) -> Value:
    """The result of `call`; a user's mistake becomes the sentence that a program is told."""
    try:
        return call()
    except PfedmmaError as error:
        raise gr.Error(str(error), print_exception=False) from None


def _client_field(model: DemoModel, first: str, name: str) -> gr.Dropdown:
    ids = [info.id for info in model.clients]
    return gr.Dropdown(ids, value=first, label="client", elem_id=f"api-{name}-client")


def _add_compare(model: DemoModel, first: str) -> None:
    def compare_image(
        image: str | None,
        client: str,
        class_set: ClassSet = "all",
        typed: str = "",
        other: str = "",
        truth: str = "",
    ) -> dict[str, Any]:
        """Ask zero-shot CLIP and a client's personalized model what an image shows.

        Args:
            image: the image file (JPEG, PNG, WebP, BMP), or a data: address; no http addresses.
            client: id of the client whose personalized model is asked.
            class_set: all, seen (by this client), base (by some client), novel (by none) or typed.
            typed: with class_set "typed", at least two class names with commas between them.
            other: id of one more client to ask; empty for none.
            truth: name of the true class, where it is known; empty otherwise.

        Returns:
            Per model the five most probable classes with probability and kind (seen, elsewhere,
            novel, typed); whether the two models agree; device, precision and milliseconds.
        """
        if image is None:
            raise gr.Error("Give an image file.", print_exception=False)
        return _sentence(
            lambda: compare(
                model,
                Path(image),
                client,
                class_set=class_set,
                typed=typed,
                other=other or None,
                truth=truth or None,
            ).to_dict()
        )

    fields = [
        photo(label="image", elem_id="api-compare-image"),
        _client_field(model, first, "compare"),
        gr.Dropdown(list(CLASS_SETS), value="all", label="class_set", elem_id="api-class-set"),
        gr.Textbox("", label="typed", elem_id="api-typed"),
        gr.Textbox("", label="other", elem_id="api-other"),
        gr.Textbox("", label="truth", elem_id="api-truth"),
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
        given = [Upload.plain(file) for file in files or []]

        def call() -> tuple[dict[str, Any], str]:
            gallery = judge_source(model, given or None, int(count), client, names)
            listed = {row.name for row in gallery.choose(filter)}
            found = gallery.to_dict()
            found["images"] = [image for image in found["images"] if image["name"] in listed]
            return found, write_csv(gallery, table.GRADIO_CACHE)

        return _sentence(call)

    fields = [
        photos(label="files", elem_id="api-gallery-files"),
        _client_field(model, first, "gallery"),
        gr.Dropdown(list(NAME_SETS), value="measured", label="names", elem_id="api-names"),
        gr.Number(100, precision=0, minimum=1, label="count", elem_id="api-count"),
        gr.Dropdown(list(FILTERS), value="all", label="filter", elem_id="api-filter"),
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
        return about_dict(model)

    api(list_clients, api_name="clients")
    api(describe_model, api_name="about")
