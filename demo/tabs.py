"""The tabs of the page: one picture, many pictures, the clients."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gradio as gr

from pfedmma_deploy.errors import PfedmmaError
from pfedmma_deploy.types import STRENGTHS

from . import views
from .api import judge_source, write_csv
from .compare import compare
from .components import asset, dropdown, folder_picker, photo, photos, picked_files
from .gallery import FILTERS, NAME_SETS, Example, Filter, Gallery, GalleryNames, find_examples
from .model import CLASS_SETS, ClassSet, DemoModel, client_choices
from .uploads import MOST_IMAGES, Upload

QUIET: dict[str, Any] = {"api_visibility": "private"}
"""For events of the page, which programs do not see."""


class CompareTab:
    """One picture, zero-shot CLIP beside a client's model."""

    TYPED = "a dog, a sailing boat, a red car, a passenger plane"
    EMPTY = (
        "Drop a picture, paste one, or take one with the camera; or click an example below. "
        "Both models answer at once."
    )

    def __init__(self, model: DemoModel, first: str) -> None:
        """Lay out the tab, with the first example of client `first` answered already."""
        self.model = model
        # Computed once per client, for everybody who looks.
        self.examples = lru_cache(maxsize=128)(partial(find_examples, model))
        start = next(iter(self.examples(first)), None)
        self._lay_out_fields(first, start)
        answer = views.render("hint", self.EMPTY) if start is None else self._answer(start, first)
        self.result = gr.HTML(answer, elem_id="compare-result")
        under = "chosen by rule from the test images, for the client above"
        gr.HTML(
            views.render("section", "Examples", under),
            elem_id="compare-examples-title",
            visible=model.sample is not None,
        )
        self.shelf = gr.HTML(
            views.render("examples", self.examples(first)),
            elem_id="compare-examples",
            js_on_load=asset("examples.js"),
        )
        self._connect()

    def _lay_out_fields(self, first: str, start: Example | None) -> None:
        clients = client_choices(self.model)
        names = {"": "Not known"}
        for name in self.model.class_names:
            names[name] = name.replace("_", " ")
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=300):
                self.image = photo(
                    label="Picture",
                    value=start.image if start else None,
                    sources=["upload", "clipboard", "webcam"],
                    height=310,
                    buttons=["fullscreen"],
                    elem_id="compare-image",
                )
                self._lay_out_strength(first)
            with gr.Column(scale=6, min_width=300):
                self.client = dropdown("Client", clients, first, "compare-client")
                self.card = gr.HTML(views.client_card(self.model, first), elem_id="compare-card")
                with gr.Row():
                    chosen = start.class_set if start else "all"
                    self.class_set = dropdown("Choose among", CLASS_SETS, chosen, "compare-classes")
                    truth = start.truth if start else ""
                    self.truth = dropdown("True class", names, truth, "compare-truth")
                    others = {"": "None", **clients}
                    self.other = dropdown("Another client", others, "", "compare-other")
                self.typed = gr.Textbox(
                    self.TYPED,
                    label="Your class names, with commas between them",
                    info="Each model reads them with its own text tower.",
                    visible=False,
                    elem_id="compare-typed",
                )

    def _lay_out_strength(self, first: str) -> None:
        default = self.model.client(first).default_strength
        self.strength = gr.Slider(
            STRENGTHS[0],
            STRENGTHS[-1],
            value=default,
            step=1 / 16,  # as guards choose them
            label="Strength",
            info="How much of what the client learned counts: 0 is zero-shot CLIP, 1 as trained.",
            visible=self.model.manifest.strength is not None,
            elem_id="compare-strength",
        )
        curve = views.strength_curve(self.model, first, default)
        self.curve = gr.HTML(curve, elem_id="compare-curve")

    def _connect(self) -> None:
        result, truth, strength = self.result, self.truth, self.strength
        values = [self.image, self.client, self.class_set, self.typed, self.other, strength, truth]
        latest: dict[str, Any] = {
            **QUIET,
            "concurrency_limit": 4,
            # Of changes made while an answer is computed, the last one alone counts.
            "trigger_mode": "always_last",
            "show_progress": "minimal",
        }
        self.image.input(self.take, values[:-1], [result, truth], **latest)
        # The answers first: finding a client's examples takes longer.
        shown = [result, self.card, strength, self.curve]
        self.client.input(self.switch, values, shown, **latest).then(
            lambda one: views.render("examples", self.examples(one)),
            self.client,
            self.shelf,
            **latest,
        )
        self.class_set.input(self.choose_names, values, [result, self.typed], **latest)
        others = [self.typed.submit, self.typed.blur, self.other.input, truth.input]
        gr.on(others, self.show, values, result, **latest)
        strength.input(self.turn, values, [result, self.curve], **latest)
        self.shelf.click(
            self.click_example,
            [self.client, self.other, strength],
            [self.image, truth, self.class_set, self.typed, result],
            scroll_to_output=False,
            # Every click counts, and one answer after the other: Gradio's other modes drop a
            # click, or what was clicked, while an answer is on its way.
            trigger_mode="multiple",
            concurrency_limit=1,
            **QUIET,
        )

    def show(
        self,
        image: str | None,
        client: str,
        class_set: ClassSet,
        typed: str,
        other: str,
        strength: float,
        truth: str,
    ) -> str:
        """The answers as HTML, or what is missing, or what is wrong."""
        if image is None:
            return views.render("hint", self.EMPTY)
        try:
            found = compare(
                self.model, Path(image), client, class_set, typed, other, truth, strength
            )
        except PfedmmaError as error:
            return views.render("problem", str(error))
        return views.comparison(found)

    def take(self, *inputs: Any) -> tuple[str, str]:
        """A new picture: nobody knows its class yet."""
        asked = [*inputs, ""]
        return self.show(*asked), ""

    def switch(
        self,
        image: str | None,
        client: str,
        class_set: ClassSet,
        typed: str,
        other: str,
        _: float,
        truth: str,
    ) -> tuple[str, str, float, str]:
        """Another client, at its own strength: its answers, its card, its curve."""
        strength = self.model.client(client).default_strength
        shown = self.show(image, client, class_set, typed, other, strength, truth)
        curve = views.strength_curve(self.model, client, strength)
        return shown, views.client_card(self.model, client), strength, curve

    def turn(self, *inputs: Any) -> tuple[str, str]:
        """Another strength: the answers, and the point on the curve."""
        client, strength = inputs[1], inputs[5]
        return self.show(*inputs), views.strength_curve(self.model, client, strength)

    def choose_names(self, *inputs: Any) -> tuple[str, dict[str, Any]]:
        """Other names to choose from; the field for typed ones comes and goes."""
        return self.show(*inputs), gr.update(visible=inputs[2] == "typed")

    def click_example(
        self, client: str, other: str, strength: float, event: gr.EventData
    ) -> tuple[Any, ...]:
        """An example was clicked: its picture, its class, its names."""
        one = self.examples(client)[int(event.number)]
        typed = gr.update(visible=False)
        answer = self._answer(one, client, other, strength)
        return one.image, one.truth, one.class_set, typed, answer

    def _answer(
        self, one: Example, client: str, other: str = "", strength: float | None = None
    ) -> str:
        """What the models say about an example."""
        found = compare(
            self.model, one.image, client, one.class_set, "", other, one.truth, strength
        )
        return views.comparison(found)


class GalleryTab:
    """Many pictures: figures, filters, confusion matrices, CSV."""

    PAGE = 28
    SAMPLE, OWN = "Test images of the sample", "My own images"
    EMPTY = (
        "Press “Judge these images”: both models answer for all of them, and you see where they "
        "differ and how often each is right."
    )
    NO_FILES = "Choose some images, a zip or a folder first."
    # An empty place for the progress bar.
    WORKING = '<div class="pf-working"></div>'

    def __init__(self, model: DemoModel, first: str) -> None:
        """Lay out the tab."""
        self.model = model
        self.gallery, self.limit, self.picked = gr.State(None), gr.State(self.PAGE), gr.State([])
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=300):
                self._lay_out_images()
            with gr.Column(scale=6, min_width=300):
                clients = client_choices(model)
                self.client = dropdown("Client", clients, first, "gallery-client")
                self.names = dropdown("Choose among", NAME_SETS, "measured", "gallery-names")
                self.button = gr.Button(
                    "Judge these images", variant="primary", elem_id="gallery-run"
                )
        self.figures = gr.HTML(views.render("hint", self.EMPTY), elem_id="gallery-figures")
        with gr.Column(visible=False, elem_id="gallery-results") as self.results:
            self._lay_out_results()
        self._connect()

    def _lay_out_images(self) -> None:
        """Which images: the sample's or one's own."""
        tests = len(self.model.tests)
        most = min(MOST_IMAGES, tests) or MOST_IMAGES
        self.source = gr.Radio(
            [self.SAMPLE, self.OWN],
            value=self.SAMPLE if tests else self.OWN,
            label="Images",
            visible=tests > 0,
            elem_id="gallery-source",
        )
        self.count = gr.Slider(
            min(20, most),
            most,
            value=min(200, most),
            step=20,
            label="How many, all classes in turn",
            visible=tests > 0,
            elem_id="gallery-count",
        )
        # The column comes and goes, not the field: see `components.as_files`.
        with gr.Column(visible=tests == 0, elem_id="gallery-own") as self.own:
            self.files = photos(
                label=f"Images, or a zip with a folder per class ({MOST_IMAGES:,} at most)",
                file_types=["image", ".zip"],
                height=160,
                elem_id="gallery-files",
            )
            self.picker = folder_picker(MOST_IMAGES, elem_id="gallery-folder")

    def _lay_out_results(self) -> None:
        self.chosen = gr.Radio(
            [(label, name) for name, label in FILTERS.items()],
            value="all",
            label="Show",
            elem_id="gallery-filter",
        )
        self.grid = gr.HTML(elem_id="gallery-grid")
        with gr.Row():
            self.more = gr.Button("Show more", size="md", visible=False, elem_id="gallery-more")
            self.download = gr.DownloadButton(
                "Download all answers as CSV", size="md", elem_id="gallery-csv"
            )
        gr.HTML(
            views.render("section", "Confusion", "rows: true class, columns: answer"),
            elem_id="gallery-confusion-title",
        )
        self.confusion = gr.HTML(elem_id="gallery-confusion")

    def _connect(self) -> None:
        self.source.input(
            lambda source: (
                gr.update(visible=source == self.SAMPLE),
                gr.update(visible=source == self.OWN),
            ),
            self.source,
            [self.count, self.own],
            **QUIET,
        )
        shown = [self.figures, self.gallery, self.limit, self.results]
        shown += [self.grid, self.more, self.confusion, self.download]
        asked = [self.source, self.count, self.files, self.picked]
        asked += [self.client, self.names, self.chosen]
        self.button.click(
            lambda: self.WORKING, None, self.figures, show_progress="hidden", **QUIET
        ).then(self.run, asked, shown, show_progress_on=self.figures, **QUIET)
        self.picker.upload(picked_files, None, self.picked, **QUIET)
        page = [self.grid, self.more, self.limit]
        self.chosen.input(self.show, [self.gallery, self.chosen], page, **QUIET)
        self.more.click(
            lambda gallery, chosen, limit: self.show(gallery, chosen, limit + self.PAGE),
            [self.gallery, self.chosen, self.limit],
            page,
            **QUIET,
        )

    def run(
        self,
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
        # What the other places show where there is only a sentence to say.
        nothing = (None, self.PAGE, gr.update(visible=False), "", gr.update(), "", gr.update())
        given = [*map(Upload.plain, files or []), *folder]
        if source == self.OWN and not given:
            return views.render("hint", self.NO_FILES), *nothing
        try:
            gallery = judge_source(
                self.model,
                None if source == self.SAMPLE else given,
                int(count),
                client,
                names,
                lambda done, total: progress((done, total), unit="images"),
            )
        except PfedmmaError as error:
            return views.render("problem", str(error)), *nothing
        html, more, limit = self.show(gallery, chosen)
        return (
            views.figures(gallery),
            gallery,
            limit,
            gr.update(visible=True),
            html,
            more,
            views.confusions(gallery),
            gr.update(value=write_csv(gallery, self.download.GRADIO_CACHE)),
        )

    def show(
        self, gallery: Gallery | None, chosen: Filter, limit: int = PAGE
    ) -> tuple[str, dict[str, Any], int]:
        """The first images that a filter shows, whether there are more, and how many these are."""
        if gallery is None:
            return views.render("hint", self.EMPTY), gr.update(visible=False), self.PAGE
        html, has_more = views.grid(gallery, chosen, limit)
        return html, gr.update(visible=has_more), limit


def clients_tab(model: DemoModel) -> None:
    """Lay out what every client has and reaches."""
    gr.HTML(views.traffic(model), elem_id="clients-traffic")
    under = "zero-shot beside personalized, client by client"
    gr.HTML(views.render("section", "Accuracy", under), elem_id="clients-accuracy-title")
    gr.HTML(views.accuracies(model), elem_id="clients-accuracy")
    gr.HTML(
        views.render("section", "Who has which classes", "training images of every client"),
        elem_id="clients-classes-title",
    )
    gr.HTML(views.classes(model), elem_id="clients-classes")
