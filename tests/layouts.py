"""Small copies of public data sets, laid out as their documentation says (not as our readers do).

CoOp's DATASETS.md for the few-shot sets, the archives of CIFAR, DomainNet's list files, Dassl's
DATASETS.md for data by domain. Every image has a colour that only its class has, so that a test can
see from the pixels whether image and label belong together.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

PARTS = {"train": 6, "val": 2, "test": 2}
"""Images of a class in each part."""


@dataclass
class Tree:
    """What a layout was made to hold."""

    path: Path
    names: Sequence[str]
    """Class names in order."""
    counts: Mapping[str, int]
    domains: set[str | None] = field(default_factory=lambda: {None})
    clients: set[str | None] = field(default_factory=lambda: {None})


def colour(label: int) -> tuple[int, int, int]:
    return 40 + 50 * label, 220 - 50 * label, 128


def pixels(label: int, number: int, size: int) -> NDArray[np.uint8]:
    """One colour, and one pixel that makes each image another file."""
    array = np.empty((size, size, 3), np.uint8)
    array[:] = colour(label)
    array[0, 0] = number % 256, number // 256, 0
    return array


def paint(path: Path, label: int, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(label, number, 32)).save(path, "JPEG", quality=95)


def counts(num_classes: int, *parts: str) -> dict[str, int]:
    return {part: num_classes * PARTS[part] for part in parts}


def split_tree(
    root: Path,
    file: str,
    prefix: str,
    classes: Sequence[tuple[str, str, str]],
    where: str = "{}/{}",
) -> Path:
    """A data set with CoOp's split file; classes are (folder, name in the file, file name)."""
    rows: dict[str, list[list[object]]] = {part: [] for part in PARTS}
    number = 0
    for label, (folder, name, image) in enumerate(classes):
        for part, count in PARTS.items():
            for _ in range(count):
                number += 1
                place = where.format(folder, image.format(number))
                place = place.replace("{part}", part)
                paint(root / prefix / place, label, number)
                rows[part].append([place, label, name])
    for of_part in rows.values():
        of_part.reverse()  # CoOp shuffles them
    (root / file).write_text(json.dumps(rows))
    return root


def caltech(root: Path) -> Tree:
    classes = [
        ("Faces", "face", "image_{:04}.jpg"),
        ("Leopards", "leopard", "image_{:04}.jpg"),
        ("accordion", "accordion", "image_{:04}.jpg"),
        ("airplanes", "airplane", "image_{:04}.jpg"),
    ]
    path = root / "caltech-101"
    split_tree(path, "split_zhou_Caltech101.json", "101_ObjectCategories", classes)
    paint(path / "101_ObjectCategories" / "BACKGROUND_Google" / "image_0001.jpg", 0)
    names = ["face", "leopard", "accordion", "airplane"]
    return Tree(path, names, counts(4, "train", "val", "test"))


def pets(root: Path) -> Tree:
    breeds = ["abyssinian", "american_bulldog", "american_pit_bull_terrier", "basset_hound"]
    files = ["Abyssinian", "american_bulldog", "american_pit_bull_terrier", "basset_hound"]
    classes = [("", name, file + "_{}.jpg") for name, file in zip(breeds, files, strict=True)]
    path = split_tree(
        root / "oxford_pets", "split_zhou_OxfordPets.json", "images", classes, "{0}{1}"
    )
    (path / "annotations").mkdir()
    names = [breed.replace("_", " ") for breed in breeds]
    return Tree(path, names, counts(4, "train", "val", "test"))


def cars(root: Path) -> Tree:
    names = [
        "2000 AM General Hummer SUV",
        "2012 Acura RL Sedan",
        "2012 Acura TL Sedan",
        "2008 Acura TL Type-S",
    ]
    path = root / "stanford_cars"
    rows: dict[str, list[list[object]]] = {part: [] for part in PARTS}
    number = 0
    for label, name in enumerate(names):
        for part, count in PARTS.items():
            for _ in range(count):
                number += 1
                place = f"{'cars_test' if part == 'test' else 'cars_train'}/{number:05}.jpg"
                paint(path / place, label, number)
                rows[part].append([place, label, name])
    (path / "split_zhou_StanfordCars.json").write_text(json.dumps(rows))
    (path / "devkit").mkdir()
    (path / "devkit" / "cars_meta.mat").touch()
    return Tree(path, names, counts(4, "train", "val", "test"))


def flowers(root: Path) -> Tree:
    names = ["pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea"]
    classes = [("", name, "image_{:05}.jpg") for name in names]
    path = root / "oxford_flowers"
    split_tree(path, "split_zhou_OxfordFlowers.json", "jpg", classes, "{0}{1}")
    (path / "imagelabels.mat").touch()
    return Tree(path, names, counts(4, "train", "val", "test"))


def food(root: Path) -> Tree:
    folders = ["apple_pie", "baby_back_ribs", "baklava", "beef_carpaccio"]
    path = root / "food-101"
    split_tree(path, "split_zhou_Food101.json", "images", [(f, f, "{}.jpg") for f in folders])
    names = [folder.replace("_", " ") for folder in folders]
    return Tree(path, names, counts(4, "train", "val", "test"))


def sun(root: Path) -> Tree:
    classes = [
        ("a/abbey", "abbey", "sun_{}.jpg"),
        ("a/airplane_cabin", "airplane_cabin", "sun_{}.jpg"),
        ("a/apse/indoor", "indoor apse", "sun_{}.jpg"),
        ("b/balcony/exterior", "exterior balcony", "sun_{}.jpg"),
    ]
    path = split_tree(root / "sun397", "split_zhou_SUN397.json", "SUN397", classes)
    names = ["abbey", "airplane cabin", "indoor apse", "exterior balcony"]
    return Tree(path, names, counts(4, "train", "val", "test"))


def textures(root: Path) -> Tree:
    names = ["banded", "blotchy", "braided", "bubbly"]
    classes = [(name, name, name + "_{:04}.jpg") for name in names]
    path = root / "dtd"
    split_tree(path, "split_zhou_DescribableTextures.json", "images", classes)
    return Tree(path, names, counts(4, "train", "val", "test"))


def eurosat(root: Path) -> Tree:
    classes = [
        ("AnnualCrop", "Annual Crop Land", "AnnualCrop_{}.jpg"),
        ("Forest", "Forest", "Forest_{}.jpg"),
        ("HerbaceousVegetation", "Herbaceous Vegetation Land", "HerbaceousVegetation_{}.jpg"),
        ("Highway", "Highway or Road", "Highway_{}.jpg"),
    ]
    path = split_tree(root / "eurosat", "split_zhou_EuroSAT.json", "2750", classes)
    return Tree(path, [name for _, name, _ in classes], counts(4, "train", "val", "test"))


def ucf(root: Path) -> Tree:
    folders = ["Apply_Eye_Makeup", "Apply_Lipstick", "Archery", "Baby_Crawling"]
    classes = [(f, f, "v_" + f.replace("_", "") + "_g{:02}_c01.jpg") for f in folders]
    path = root / "ucf101"
    split_tree(path, "split_zhou_UCF101.json", "UCF-101-midframes", classes)
    names = [folder.replace("_", " ") for folder in folders]
    return Tree(path, names, counts(4, "train", "val", "test"))


def aircraft(root: Path) -> Tree:
    path = root / "fgvc_aircraft"
    variants = ["707-320", "727-200", "F-16A/B", "Boeing 717"]
    lines: dict[str, list[str]] = {part: [] for part in PARTS}
    number = 0
    for label, variant in enumerate(variants):
        for part, count in PARTS.items():
            for _ in range(count):
                number += 1
                paint(path / "images" / f"{number:07}.jpg", label, number)
                lines[part].append(f"{number:07} {variant}")
    (path / "variants.txt").write_text("\n".join(variants) + "\n")
    (path / "families.txt").write_text("Boeing 707\n")
    for part, of_part in lines.items():
        (path / f"images_variant_{part}.txt").write_text("\n".join(of_part) + "\n")
    return Tree(path, variants, counts(4, "train", "val", "test"))


def imagenet(root: Path) -> Tree:
    path = root / "imagenet"
    # classnames.txt is not sorted, and names more classes than there are.
    names = {
        "n01443537": "goldfish",
        "n01440764": "tench",
        "n01491361": "tiger shark",
        "n01484850": "great white shark",
        "n01494475": "hammerhead shark",
    }
    number = 0
    for label, folder in enumerate(["n01440764", "n01443537", "n01484850", "n01491361"]):
        for part, of in (("train", "train"), ("val", "test")):
            for _ in range(PARTS[of]):
                number += 1
                image = f"{folder}_{number}" if part == "train" else f"ILSVRC2012_val_{number:08}"
                paint(path / "images" / part / folder / f"{image}.JPEG", label, number)
    (path / "classnames.txt").write_text("".join(f"{k} {v}\n" for k, v in names.items()))
    order = ["tench", "goldfish", "great white shark", "tiger shark"]
    return Tree(path, order, counts(4, "train", "test"))


def _records(start: int, count: int, classes: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Rows of 3,072 bytes, channels first, and their labels."""
    labels = [number % classes for number in range(start, start + count)]
    images = [pixels(label % 4, start + i, 32) for i, label in enumerate(labels)]
    return np.stack([image.transpose(2, 0, 1).reshape(-1) for image in images]), labels


CIFAR10 = ["airplane", "automobile", "bird", "cat"]
FISH = ["aquarium_fish", "bear", "beaver", "flatfish"]


def cifar10_python(root: Path) -> Tree:
    path = root / "cifar-10-batches-py"
    path.mkdir(parents=True)
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    for number, name in enumerate(names):
        data, labels = _records(10 * number, 8, 4)
        batch = {b"batch_label": b"batch", b"labels": labels, b"data": data, b"filenames": [b"x"]}
        (path / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {b"num_cases_per_batch": 8, b"label_names": [n.encode() for n in CIFAR10]}
    (path / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return Tree(path, CIFAR10, {"train": 40, "test": 8})


def cifar10_binary(root: Path) -> Tree:
    path = root / "cifar-10-batches-bin"
    path.mkdir(parents=True)
    names = [f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]
    for number, name in enumerate(names):
        data, labels = _records(10 * number, 8, 4)
        records = np.concatenate([np.array(labels, np.uint8)[:, None], data], axis=1)
        (path / name).write_bytes(records.tobytes())
    (path / "batches.meta.txt").write_text("\n".join(CIFAR10) + "\n\n")
    return Tree(path, CIFAR10, {"train": 40, "test": 8})


def cifar100_python(root: Path) -> Tree:
    path = root / "cifar-100-python"
    path.mkdir(parents=True)
    for name, start in (("train", 0), ("test", 100)):
        data, labels = _records(start, 20, 4)
        batch = {"filenames": ["x"], "fine_labels": labels, "coarse_labels": [0] * 20, "data": data}
        (path / name).write_bytes(pickle.dumps(batch, protocol=4))
    meta = {"fine_label_names": FISH, "coarse_label_names": ["aquatic_mammals", "fish"]}
    (path / "meta").write_bytes(pickle.dumps(meta, protocol=4))
    names = [name.replace("_", " ") for name in FISH]
    return Tree(path, names, {"train": 20, "test": 20})


def cifar100_binary(root: Path) -> Tree:
    path = root / "cifar-100-binary"
    path.mkdir(parents=True)
    for name, start in (("train.bin", 0), ("test.bin", 100)):
        data, labels = _records(start, 20, 4)
        both = np.stack([np.full(20, 7), np.array(labels)], axis=1).astype(np.uint8)
        (path / name).write_bytes(np.concatenate([both, data], axis=1).tobytes())
    (path / "fine_label_names.txt").write_text("\n".join(FISH) + "\n")
    (path / "coarse_label_names.txt").write_text("aquatic_mammals\n")
    names = [name.replace("_", " ") for name in FISH]
    return Tree(path, names, {"train": 20, "test": 20})


def domainnet(root: Path) -> Tree:
    path = root / "domainnet"
    domains = ["clipart", "infograph", "painting", "quickdraw", "real", "sketch"]
    folders = ["The_Eiffel_Tower", "aircraft_carrier", "airplane", "alarm_clock"]
    number = 0
    for n, domain in enumerate(domains):
        lines: dict[str, list[str]] = {"train": [], "test": []}
        for label, folder in enumerate(folders):
            for part in lines:
                for _ in range(PARTS[part]):
                    number += 1
                    place = f"{domain}/{folder}/{domain}_{n:03}_{number:06}.jpg"
                    paint(path / place, label, number)
                    lines[part].append(f"{place} {label}")
        for part, of_part in lines.items():
            (path / f"{domain}_{part}.txt").write_text("\n".join(of_part) + "\n")
    names = [folder.replace("_", " ") for folder in folders]
    return Tree(path, names, counts(24, "train", "test"), set(domains))


def by_domain(path: Path, domains: Sequence[str], folders: Sequence[str]) -> Tree:
    number = 0
    for domain in domains:
        for label, folder in enumerate(folders):
            for _ in range(10):
                number += 1
                paint(path / domain / folder / f"{number:05}.jpg", label, number)
    names = [folder.replace("_", " ") for folder in folders]
    return Tree(path, names, {"train": 10 * len(domains) * len(folders)}, set(domains))


def office_caltech(root: Path) -> Tree:
    folders = ["back_pack", "bike", "calculator", "headphones"]
    return by_domain(root / "office_caltech_10", ["amazon", "caltech", "dslr", "webcam"], folders)


def fedbn(root: Path, dump: Callable[[list[str], list[str]], object] | None = None) -> Tree:
    """Office-Caltech10 with FedBN's pickled lists: arrays of texts, or what `dump` makes."""
    tree = office_caltech(root)
    for domain in tree.domains:
        paths = sorted(path for path in (tree.path / str(domain)).rglob("*.jpg"))
        parts = {"test": paths[::5], "train": [p for i, p in enumerate(paths) if i % 5]}
        for part, of_part in parts.items():
            names = [f"office_caltech_10/{path.relative_to(tree.path)}" for path in of_part]
            labels = [path.parent.name for path in of_part]
            content = (np.array(names), np.array(labels)) if dump is None else dump(names, labels)
            (tree.path / f"{domain}_{part}.pkl").write_bytes(pickle.dumps(content, protocol=4))
    return Tree(tree.path, tree.names, {"train": 128, "test": 32}, tree.domains)


def pacs(root: Path) -> Tree:
    domains = ["art_painting", "cartoon", "photo", "sketch"]
    return by_domain(root / "pacs", domains, ["dog", "elephant", "giraffe", "guitar"])


def office_home(root: Path) -> Tree:
    domains = ["Art", "Clipart", "Product", "Real World"]
    folders = ["Alarm_Clock", "Backpack", "Batteries", "Bed"]
    return by_domain(root / "OfficeHomeDataset_10072016", domains, folders)


def image_folder(root: Path) -> Tree:
    number = 0
    for label, folder in enumerate(["cat", "cow", "dog", "hen"]):
        for _ in range(10):
            number += 1
            paint(root / "photos" / folder / f"{number}.jpg", label, number)
    return Tree(root / "photos", ["cat", "cow", "dog", "hen"], {"train": 40})


def clients(root: Path) -> Tree:
    number = 0
    for site in ("north", "south"):
        for label, folder in enumerate(["cat", "cow", "dog", "hen"]):
            for part, count in PARTS.items():
                for _ in range(count):
                    number += 1
                    paint(root / "sites" / site / part / folder / f"{number}.jpg", label, number)
    return Tree(
        root / "sites",
        ["cat", "cow", "dog", "hen"],
        counts(8, "train", "val", "test"),
        clients={"north", "south"},
    )


def manifest_rows(root: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for label, name in enumerate(["cat", "cow", "dog", "hen"]):
        for part, count in PARTS.items():
            for _ in range(count):
                place = f"images/{len(rows):03}.jpg"
                paint(root / place, label, len(rows))
                rows.append(
                    {
                        "path": place,
                        "label": name,
                        "client": "north" if len(rows) % 2 else "south",
                        "domain": "photo",
                        "split": part,
                        "caption": f"a {name}, sitting",
                    }
                )
    return rows


def manifest_csv(root: Path) -> Tree:
    import csv

    rows = manifest_rows(root / "farm")
    with (root / "farm" / "farm.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return _manifest(root / "farm" / "farm.csv")


def manifest_parquet(root: Path) -> Tree:
    pytest.importorskip("pyarrow")
    from pyarrow import Table, parquet

    rows = manifest_rows(root / "farm")
    parquet.write_table(Table.from_pylist(rows), root / "farm" / "manifest.parquet")
    return _manifest(root / "farm")


def _manifest(path: Path) -> Tree:
    names = ["cat", "cow", "dog", "hen"]
    return Tree(path, names, counts(4, "train", "val", "test"), {"photo"}, {"north", "south"})


def hub(root: Path) -> Tree:
    datasets = pytest.importorskip("datasets")
    names = ["cat", "cow", "dog", "hen"]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    parts = {}
    for part, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        rows: dict[str, list[object]] = {"image": [], "label": []}
        for label in range(4):
            for number in range(PARTS[part]):
                image = Image.fromarray(pixels(label, len(part) * 50 + 10 * label + number, 32))
                rows["image"].append(image)
                rows["label"].append(label)
        parts[name] = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(parts).save_to_disk(str(root / "animals"))
    return Tree(root / "animals", names, counts(4, "train", "val", "test"))


LAYOUTS: dict[str, Callable[[Path], Tree]] = {
    "caltech-101": caltech,
    "oxford_pets": pets,
    "stanford_cars": cars,
    "oxford_flowers": flowers,
    "food-101": food,
    "fgvc_aircraft": aircraft,
    "sun397": sun,
    "dtd": textures,
    "eurosat": eurosat,
    "ucf101": ucf,
    "imagenet": imagenet,
    "cifar10": cifar10_python,
    "cifar10-binary": cifar10_binary,
    "cifar100": cifar100_python,
    "cifar100-binary": cifar100_binary,
    "domainnet": domainnet,
    "office_caltech10": office_caltech,
    "office_caltech10-fedbn": fedbn,
    "pacs": pacs,
    "office_home": office_home,
    "image folder": image_folder,
    "clients": clients,
    "manifest.csv": manifest_csv,
    "manifest.parquet": manifest_parquet,
    "hub": hub,
}
