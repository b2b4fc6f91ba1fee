"""The Compare tab: one picture, zero-shot CLIP beside a client's model."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr

from pfedmma_deploy.errors import PfedmmaError

from . import views
from .compare import compare
from .components import photo
from .examples import Found, find_examples
from .model import CLASS_SETS, ClassSet, DemoModel

__all__ = ["client_choices", "compare_tab"]

TYPED = "a dog, a sailing boat, a red car, a passenger plane"
EMPTY = (
    "Drop a picture, paste one, or take one with the camera; or click an example below. "
    "Both models answer at once."
)
CLICK = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-example]');
  if (button) trigger('click', {number: Number(button.dataset.example)});
});
"""
NOBODY = "None"
UNKNOWN = "Not known"


def client_choices(model: DemoModel) -> list[tuple[str, str]]:
    """Every client with what it has seen, and its id."""
    most = 6
    choices = []
    for info in model.clients:
        names = [model.class_names[label].replace("_", " ") for label in info.seen]
        seen = ", ".join(names[:most]) + (f", {len(names) - most} more" if names[most:] else "")
        choices.append((f"Client {info.id}: {seen}", info.id))
    return choices


def compare_tab(model: DemoModel, first: str) -> None:
    """Lay out the tab, with the first example of client `first` answered already."""

    @lru_cache(maxsize=128)
    def found(client: str) -> tuple[Found, ...]:
        return tuple(find_examples(model, client))

    def show(
        image: str | None, client: str, class_set: ClassSet, typed: str, other: str, truth: str
    ) -> str:
        """The answers as HTML, or what is missing, or what is wrong."""
        if image is None:
            return views.hint(EMPTY)
        try:
            source = Path(image)
            return views.comparison(
                compare(
                    model,
                    source,
                    client,
                    class_set=class_set,
                    typed=typed,
                    other=other or None,
                    truth=truth or None,
                )
            )
        except PfedmmaError as error:
            return views.problem(str(error))

    start = found(first)[0] if found(first) else None
    names: list[tuple[str, str]] = [(n.replace("_", " "), n) for n in model.class_names]
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            image = photo(
                label="Picture",
                value=start.image if start else None,
                sources=["upload", "clipboard", "webcam"],
                height=310,
                buttons=["fullscreen"],
                elem_id="compare-image",
            )
        with gr.Column(scale=6, min_width=300):
            client = gr.Dropdown(
                client_choices(model), value=first, label="Client", elem_id="compare-client"
            )
            card = gr.HTML(views.client_card(model, first), elem_id="compare-card")
            with gr.Row():
                class_set = gr.Dropdown(
                    [(label, name) for name, label in CLASS_SETS.items()],
                    value=start.class_set if start else "all",
                    label="Choose among",
                    min_width=150,
                    elem_id="compare-classes",
                )
                truth = gr.Dropdown(
                    [(UNKNOWN, ""), *names],
                    value=start.truth if start else "",
                    label="True class",
                    min_width=150,
                    elem_id="compare-truth",
                )
                other = gr.Dropdown(
                    [(NOBODY, ""), *client_choices(model)],
                    value="",
                    label="Another client",
                    min_width=150,
                    elem_id="compare-other",
                )
            typed = gr.Textbox(
                TYPED,
                label="Your class names, with commas between them",
                info="Each model reads them with its own text tower.",
                visible=False,
                elem_id="compare-typed",
            )
    values: list[Any] = [image, client, class_set, typed, other, truth]
    if start is None:
        first_answer = views.hint(EMPTY)
    else:
        first_answer = views.comparison(
            compare(model, start.image, first, class_set=start.class_set, truth=start.truth)
        )
    result = gr.HTML(first_answer, elem_id="compare-result")
    gr.HTML(
        '<h2 class="pf-section">Examples<small>chosen by rule from the test images, for the client '
        "above</small></h2>",
        elem_id="compare-examples-title",
        visible=model.sample is not None,
    )
    shelf = gr.HTML(views.examples(found(first)), elem_id="compare-examples", js_on_load=CLICK)

    def take(
        image: str | None, client: str, class_set: ClassSet, typed: str, other: str
    ) -> tuple[str, str]:
        """A new picture: nobody knows its class yet."""
        return show(image, client, class_set, typed, other, ""), ""

    def switch(*inputs: Any) -> tuple[str, str]:
        """Another client: its answers, its card."""
        return show(*inputs), views.client_card(model, inputs[1])

    def choose_names(*inputs: Any) -> tuple[str, dict[str, Any]]:
        """Other names to choose from; the field for typed ones comes and goes."""
        return show(*inputs), gr.update(visible=inputs[2] == "typed")

    def example(client: str, other: str, event: gr.EventData) -> tuple[Any, ...]:
        """An example was clicked: its picture, its class, its names."""
        one = found(client)[int(event.number)]
        answer = compare(
            model,
            one.image,
            client,
            class_set=one.class_set,
            other=other or None,
            truth=one.truth,
        )
        return (
            one.image,
            one.truth,
            one.class_set,
            gr.update(visible=False),
            views.comparison(answer),
        )

    quiet: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 4}
    latest: dict[str, Any] = {**quiet, "trigger_mode": "always_last", "show_progress": "minimal"}
    image.input(take, values[:-1], [result, truth], **latest)
    # The answers first: finding a client's examples takes longer.
    client.input(switch, values, [result, card], **latest).then(
        lambda client: views.examples(found(client)), client, shelf, **latest
    )
    class_set.input(choose_names, values, [result, typed], **latest)
    gr.on([typed.submit, typed.blur, other.input, truth.input], show, values, result, **latest)
    shelf.click(
        example,
        [client, other],
        [image, truth, class_set, typed, result],
        scroll_to_output=False,
        # Every click counts, and one answer after the other: Gradio's other modes drop a click, or
        # what was clicked, while an answer is on its way.
        trigger_mode="multiple",
        api_visibility="private",
        concurrency_limit=1,
    )
