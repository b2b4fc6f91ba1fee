"""The server from a browser: its documentation, and a photo that a page sends."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from pfedmma_deploy.serve.asking import Service
from tests.demo import browser
from tests.serve.calling import photo, served

REASON = browser.missing()

ASK = """
async (photo) => {
  const bytes = Uint8Array.from(atob(photo), (c) => c.charCodeAt(0));
  const form = new FormData();
  form.append("images", new Blob([bytes]), "photo.png");
  form.append("client", "3");
  const answer = await fetch("/v1/classify", {method: "POST", body: form});
  return [answer.status, (await answer.json()).predictions[0].client];
}
"""


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_the_documentation_and_a_photo(service: Service, tmp_path: Path) -> None:
    with served(service) as caller, browser.open_page(tmp_path) as (page, outside):
        page.goto(str(caller.base_url))
        page.get_by_text("/v1/classify").first.wait_for()
        assert page.url.endswith("/docs")
        assert page.evaluate(ASK, base64.b64encode(photo()).decode()) == [200, "3"]
        assert outside == []
