"""The Gallery tab: many images, figures, filters, confusion matrices, CSV."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from pfedmma_deploy.errors import PfedmmaError

from . import gallery_view, views
from .archive import MOST_IMAGES, Upload, open_images, sample_items
from .compare_tab import client_choices
from .components import folder_picker, photos, picked_files
from .gallery import FILTERS, NAME_SETS, Filter, Gallery, GalleryNames
from .judging import judge
from .model import DemoModel

__all__ = ["gallery_tab", "judge_source", "write_csv"]

PAGE = 28
SAMPLE, OWN = "Test images of the sample", "My own images"
EMPTY = (
    "Press “Judge these images”: both models answer for all of them, and you see where they "
    "differ and how often each is right."
)
WORKING = '<div class="pf-working"></div>'
NO_FILES = "Choose some images, a zip or a folder first."


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


def gallery_tab(model: DemoModel, first: str) -> None:
    """Lay out the tab."""
    has_sample = bool(model.tests)
    most = min(MOST_IMAGES, len(model.tests)) or MOST_IMAGES
    state = gr.State(None)
    limit = gr.State(PAGE)
    picked = gr.State([])
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            source = gr.Radio(
                [SAMPLE, OWN],
                value=SAMPLE if has_sample else OWN,
                label="Images",
                visible=has_sample,
                elem_id="gallery-source",
            )
            count = gr.Slider(
                min(20, most),
                most,
                value=min(200, most),
                step=20,
                label="How many, all classes in turn",
                visible=has_sample,
                elem_id="gallery-count",
            )
            # The column comes and goes, not the field: see `components.as_files`.
            with gr.Column(visible=not has_sample, elem_id="gallery-own") as own:
                files = photos(
                    label=f"Images, or a zip with a folder per class ({MOST_IMAGES:,} at most)",
                    file_types=["image", ".zip"],
                    height=160,
                    elem_id="gallery-files",
                )
                picker = folder_picker(MOST_IMAGES, elem_id="gallery-folder")
        with gr.Column(scale=6, min_width=300):
            client = gr.Dropdown(
                client_choices(model), value=first, label="Client", elem_id="gallery-client"
            )
            names = gr.Dropdown(
                [(label, name) for name, label in NAME_SETS.items()],
                value="measured",
                label="Choose among",
                elem_id="gallery-names",
            )
            button = gr.Button("Judge these images", variant="primary", elem_id="gallery-run")
    figures = gr.HTML(views.hint(EMPTY), elem_id="gallery-figures")
    with gr.Column(visible=False, elem_id="gallery-results") as results:
        chosen = gr.Radio(
            [(label, name) for name, label in FILTERS.items()],
            value="all",
            label="Show",
            elem_id="gallery-filter",
        )
        grid = gr.HTML(elem_id="gallery-grid")
        with gr.Row():
            more = gr.Button("Show more", size="md", visible=False, elem_id="gallery-more")
            download = gr.DownloadButton(
                "Download all answers as CSV", size="md", elem_id="gallery-csv"
            )
        gr.HTML(
            '<h2 class="pf-section">Confusion<small>rows: true class, columns: answer</small></h2>',
            elem_id="gallery-confusion-title",
        )
        confusion = gr.HTML(elem_id="gallery-confusion")

    def run(
        source: str,
        count: float,
        files: list[str] | None,
        folder: list[Upload],
        client: str,
        names: GalleryNames,
        chosen: Filter,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio finds it
    ) -> tuple[Any, ...]:
        """Judge everything, then show the figures and the first images."""
        nothing = (None, PAGE, gr.update(visible=False), "", gr.update(), "", gr.update())
        given = [*map(Upload.plain, files or []), *folder]
        if source == OWN and not given:
            return views.hint(NO_FILES), *nothing
        try:
            gallery = judge_source(
                model,
                None if source == SAMPLE else given,
                int(count),
                client,
                names,
                lambda done, total: progress((done, total), unit="images"),
            )
        except PfedmmaError as error:
            return views.problem(str(error)), *nothing
        html, has_more = gallery_view.grid(gallery, chosen, PAGE)
        return (
            gallery_view.figures(gallery),
            gallery,
            PAGE,
            gr.update(visible=True),
            html,
            gr.update(visible=has_more),
            gallery_view.confusions(gallery),
            gr.update(value=write_csv(gallery, download.GRADIO_CACHE)),
        )

    def show(
        gallery: Gallery | None, chosen: Filter, limit: int
    ) -> tuple[str, dict[str, Any], int]:
        if gallery is None:
            return views.hint(EMPTY), gr.update(visible=False), PAGE
        html, has_more = gallery_view.grid(gallery, chosen, limit)
        return html, gr.update(visible=has_more), limit

    quiet: dict[str, Any] = {"api_visibility": "private"}
    source.input(
        lambda source: (gr.update(visible=source == SAMPLE), gr.update(visible=source == OWN)),
        source,
        [count, own],
        **quiet,
    )
    # An empty place for the progress bar, then the work.
    button.click(lambda: WORKING, None, figures, show_progress="hidden", **quiet).then(
        run,
        [source, count, files, picked, client, names, chosen],
        [figures, state, limit, results, grid, more, confusion, download],
        show_progress_on=figures,
        **quiet,
    )
    picker.upload(picked_files, None, picked, **quiet)
    chosen.input(
        lambda gallery, chosen: show(gallery, chosen, PAGE),
        [state, chosen],
        [grid, more, limit],
        **quiet,
    )
    more.click(
        lambda gallery, chosen, limit: show(gallery, chosen, limit + PAGE),
        [state, chosen, limit],
        [grid, more, limit],
        **quiet,
    )
