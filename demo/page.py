"""The page: a heading and four tabs."""

from __future__ import annotations

from html import escape

import gradio as gr

from . import clients_view
from .about import about_text
from .api import add_api
from .clients import first_client
from .compare_tab import compare_tab
from .gallery_tab import gallery_tab
from .model import DemoModel

__all__ = ["build_page"]

KEPT = 24 * 60 * 60
"""Seconds that uploads are kept."""


def build_page(model: DemoModel) -> gr.Blocks:
    """The whole page for one bundle, not launched yet."""
    first = first_client(model)
    page: gr.Blocks
    with gr.Blocks(
        title="Zero-shot CLIP and personalized models, side by side",
        analytics_enabled=False,
        delete_cache=(60 * 60, KEPT),
    ) as page:
        gr.HTML(_heading(model), elem_id="heading")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Compare", id="compare", elem_id="tab-compare"):
                compare_tab(model, first)
            with gr.Tab("Gallery", id="gallery", elem_id="tab-gallery"):
                gallery_tab(model, first)
            with gr.Tab("Clients", id="clients", elem_id="tab-clients"):
                _clients_tab(model)
            with gr.Tab("About", id="about", elem_id="tab-about"):
                gr.Markdown(about_text(model), elem_id="about-text")
        add_api(model, first)
    return page


def _heading(model: DemoModel) -> str:
    manifest = model.manifest
    count = len(model.clients)
    facts = (
        f"{model.title}: {manifest.backbone['name']}, {count} "
        f"{'client' if count == 1 else 'clients'}, {len(model.class_names)} classes"
    )
    return (
        '<div class="pf-header"><h1>One CLIP, a model of its own for every client</h1>'
        f'<p class="pf-bundle">{escape(facts)}</p>'
        "<p>What personalization changes on the classes that a client knows, and what becomes of "
        "those that it never saw.</p></div>"
    )


def _clients_tab(model: DemoModel) -> None:
    def section(title: str, under: str, name: str) -> None:
        gr.HTML(
            f'<h2 class="pf-section">{title}<small>{under}</small></h2>',
            elem_id=f"clients-{name}-title",
        )

    gr.HTML(clients_view.traffic(model), elem_id="clients-traffic")
    section("Accuracy", "zero-shot beside personalized, client by client", "accuracy")
    gr.HTML(clients_view.accuracies(model), elem_id="clients-accuracy")
    section("Who has which classes", "training images of every client", "classes")
    gr.HTML(clients_view.classes(model), elem_id="clients-classes")
