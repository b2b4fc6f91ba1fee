"""Fields of the page; those for uploads hand over files as they are, from this computer only."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from gradio.data_classes import FileData, ImageData, ListFiles
from gradio.utils import get_upload_folder

from .uploads import Upload

Field = TypeVar("Field", gr.Image, gr.File)

NO_ADDRESSES = "I fetch nothing from the network: download the image yourself and give me the file."


def asset(name: str) -> str:
    """The text of one of the page's own style sheets and scripts."""
    return files("pfedmma_deploy").joinpath("assets", "demo", name).read_text("utf-8")


def dropdown(label: str, choices: Mapping[Any, str], value: str, name: str) -> gr.Dropdown:
    """A list to choose from: value -> what is shown; the value at first, its name in the page."""
    shown = [(text, chosen) for chosen, text in choices.items()]
    return gr.Dropdown(shown, value=value, label=label, min_width=150, elem_id=name)


def photo(**options: Any) -> gr.Image:
    """An image field; its value is the path of the file, whatever the file holds."""
    return as_files(gr.Image(type="filepath", image_mode=None, format="png", **options))


def photos(**options: Any) -> gr.File:
    """A field for many files; its value is the list of their paths."""
    return as_files(gr.File(file_count="multiple", **options))


PICKER = """
<label class="pf-folder"><input type="file" webkitdirectory multiple>
<b>Choose a folder</b> <span>with one folder per class inside, so that true classes are known</span>
</label>
"""


def folder_picker(most: int, **options: Any) -> gr.HTML:
    """A field for a folder, whose files keep the folders' names; `picked_files` takes them."""
    return gr.HTML(PICKER, js_on_load=asset("folder.js").replace("MOST", str(most)), **options)


def picked_files(event: gr.EventData) -> list[Upload]:
    """The files of the folder that was picked, those alone that were uploaded.

    Raises:
        gr.Error: the browser sent something else.
    """
    home = Path(get_upload_folder()).resolve()
    found = []
    for entry in event.entries:
        match entry:
            case [str(name), str(path)] if Path(path).resolve().is_relative_to(home):
                found.append(Upload(name, Path(path)))
            case _:
                raise gr.Error("These files were not uploaded here.", print_exception=False)
    return found


def as_files(component: Field) -> Field:
    """Take Gradio's own reading of uploads out of `component`.

    It would decode with every decoder that Pillow has and end in its exceptions, and would
    download an address that a client sends in place of a file. Done on the object, because Gradio
    writes a stub file beside every module that derives a class from a component. So never answer
    an event with `gr.update` for such a field: Gradio would put a fresh object in its place.
    """
    keep = component.async_move_resource_to_block_cache

    def preprocess(payload: Any) -> Any:
        if isinstance(payload, ListFiles):
            return [_path(one) for one in payload.root]
        return None if payload is None else _path(payload)

    async def move(url_or_file_path: str | Path | None) -> str | None:
        if str(url_or_file_path).lower().startswith(("http:", "https:", "ftp:")):
            raise gr.Error(NO_ADDRESSES, print_exception=False)
        return await keep(url_or_file_path)

    def example() -> Any:
        """What the documentation of the API shows."""
        name = "photo.jpg"
        one = {"path": name, "url": name, "meta": {"_type": "gradio.FileData"}}
        return one if getattr(component, "file_count", "single") == "single" else [one]

    component.example_payload = example  # type: ignore[method-assign]
    component.preprocess = preprocess  # type: ignore[method-assign]
    component.async_move_resource_to_block_cache = move  # type: ignore[method-assign]
    return component


def _path(payload: FileData | ImageData) -> str:
    if not payload.path or (payload.url or "").startswith("data:"):
        raise gr.Error("Upload the image as a file.", print_exception=False)
    return payload.path
