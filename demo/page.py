"""The page: a heading, four tabs, and one look, light and dark; nothing from outside."""

from __future__ import annotations

import gradio as gr

from . import views
from .api import add_api
from .model import DemoModel, first_client
from .tabs import CompareTab, GalleryTab, clients_tab

KEPT = 24 * 60 * 60
"""Seconds that uploads are kept."""
HEAD = """<style>
.gradio-container {
  max-width: 1200px !important; min-width: 0 !important; margin: 0 auto !important;
}
@media (max-width: 640px) { .gradio-container .app { padding: 10px !important; } }
</style>"""
"""Around the page, where Gradio's scoping of `css` does not reach."""


def build_page(model: DemoModel) -> gr.Blocks:
    """The whole page for one bundle, not launched yet."""
    first = first_client(model)
    page: gr.Blocks
    with gr.Blocks(
        title="Zero-shot CLIP and personalized models, side by side",
        analytics_enabled=False,
        delete_cache=(60 * 60, KEPT),
    ) as page:
        gr.HTML(views.heading(model), elem_id="heading")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Compare", id="compare", elem_id="tab-compare"):
                CompareTab(model, first)
            with gr.Tab("Gallery", id="gallery", elem_id="tab-gallery"):
                GalleryTab(model, first)
            with gr.Tab("Clients", id="clients", elem_id="tab-clients"):
                clients_tab(model)
            with gr.Tab("About", id="about", elem_id="tab-about"):
                gr.Markdown(views.about(model), elem_id="about-text")
        add_api(model, first)
    return page


def theme() -> gr.themes.Base:
    """Calm colours, the system's own fonts."""
    return gr.themes.Base(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        radius_size="lg",
        font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"),
        font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"),
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_label_text_weight="600",
        block_title_text_weight="600",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_text_color="white",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
    )
