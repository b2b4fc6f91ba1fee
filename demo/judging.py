"""Many images, asked about two models: zero-shot CLIP and one client's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import get_args

from pfedmma_deploy.errors import DataError, ImageError, UsageError
from pfedmma_deploy.runtime.manifest import ClientInfo
from pfedmma_deploy.types import Skipped

from .archive import Item
from .compare import among
from .gallery import NAME_SETS, Gallery, GalleryNames, Judged
from .inputs import thumbnail
from .model import ClassSet, DemoModel

__all__ = ["judge"]

BATCH = 16


def judge(
    model: DemoModel,
    items: Sequence[Item],
    client: str,
    *,
    names: GalleryNames = "measured",
    remarks: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Gallery:
    """Ask zero-shot CLIP and one client about many images.

    Args:
        model: the bundle.
        items: the images; those that cannot be read are left out and listed with the reason.
        client: the client's id.
        names: what an image's answer is chosen from; `measured` is the protocol of
            `pfedmma evaluate`, and all names where the true class is not known.
        remarks: what else should be said about the images.
        progress: called with images done and images in all.

    Raises:
        UsageError: an unknown client or set of names.
        DataError: not one image can be read.
    """
    if names not in get_args(GalleryNames):
        raise UsageError(f"There is no set of names {names!r}; there are {', '.join(NAME_SETS)}.")
    info = model.client(client)
    started = time.perf_counter()
    rows: list[Judged] = []
    skipped: list[Skipped] = []
    stream, done = iter(items), 0
    while chunk := list(islice(stream, BATCH)):
        rows += _judge_chunk(model, chunk, info, names, skipped)
        done += len(chunk)
        if progress is not None:
            progress(done, len(items))
    if not rows:
        first = skipped[0] if skipped else Skipped("none", "There were none.")
        raise DataError(
            f"None of the {len(items)} images can be read. {first.path}: {first.reason}"
        )
    return Gallery(
        client=client,
        names=names,
        rows=tuple(rows),
        skipped=tuple(skipped),
        remarks=tuple(remarks),
        seconds=time.perf_counter() - started,
        order=model.class_names,
    )


def _judge_chunk(
    model: DemoModel,
    chunk: Sequence[Item],
    client: ClientInfo,
    names: GalleryNames,
    skipped: list[Skipped],
) -> Iterator[Judged]:
    read = []
    for item in chunk:
        try:
            image = item.read()
            read.append((item, model.pixels(image), thumbnail(image)))
        except ImageError as error:
            skipped.append(Skipped(item.name, str(error)))
    pixels = [one for _, one, _ in read for _ in range(2)]
    found = model.classifier.predict(
        pixels, [0, client.index] * len(read), top_k=len(model.class_names), batch_size=2 * BATCH
    )
    for row, (item, _, picture) in enumerate(read):
        offered = _offered(model, item, client, names)
        plain, own = (among(one.top, offered)[0] for one in found[2 * row : 2 * row + 2])
        truth = None if item.label is None else model.class_names[item.label]
        yield Judged(
            name=item.name,
            truth=truth,
            kind=None if truth is None else model.kind(truth, client),
            zero_shot=plain.name,
            zero_shot_probability=plain.probability,
            personalized=own.name,
            personalized_probability=own.probability,
            can_be_right=truth in offered,
            picture=picture,
        )


def _offered(
    model: DemoModel, item: Item, client: ClientInfo, names: GalleryNames
) -> tuple[str, ...]:
    """The names to choose from for one image."""
    class_set: ClassSet
    if names != "measured":
        class_set = names
    elif item.label is None:
        class_set = "all"
    else:
        class_set = "novel" if model.is_novel(item.label) else "base"
    return model.names(class_set, client)
