"""Class names that the few-shot literature changed."""

from __future__ import annotations

import pytest

from pfedmma_deploy.data.readers.few_shot import fix_name


@pytest.mark.parametrize(
    ("dataset", "name", "fixed"),
    [
        ("caltech-101", "Faces", "face"),
        ("caltech-101", "Motorbikes", "motorbike"),
        ("caltech-101", "yin_yang", "yin_yang"),
        ("eurosat", "SeaLake", "Sea or Lake"),
        ("eurosat", "River", "River"),
        ("eurosat", "Highway or Road", "Highway or Road"),
        ("stanford_cars", "Audi TT RS Coupe 2012", "2012 Audi TT RS Coupe"),
        ("stanford_cars", "2012 Audi TT RS Coupe", "2012 Audi TT RS Coupe"),
        ("stanford_cars", "Ram C/V Cargo Van Minivan 2012", "2012 Ram C/V Cargo Van Minivan"),
        ("sun397", "/a/apse/indoor", "indoor apse"),
        ("sun397", "a/abbey", "abbey"),
        ("sun397", "indoor apse", "indoor apse"),
        ("ucf101", "ApplyEyeMakeup", "Apply Eye Makeup"),
        ("ucf101", "YoYo", "Yo Yo"),
        ("ucf101", "Apply_Eye_Makeup", "Apply_Eye_Makeup"),
        ("oxford_pets", "Abyssinian", "abyssinian"),
        ("food-101", "Apple_Pie", "Apple_Pie"),
    ],
)
def test_names_as_the_literature_writes_them(dataset: str, name: str, fixed: str) -> None:
    assert fix_name(dataset, name) == fixed
    assert fix_name(dataset, fixed) == fixed
