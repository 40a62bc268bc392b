"""The probabilities of a page equal a full recomputation with transformers, for every family of models."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cdgen import ContrastiveLM, SamplingParams
from cdgen.viewer.encode import UNITS_PER_NAT
from tests.helpers.browser import open_page
from tests.helpers.recomputation import CONFIGS, Recomputation, all_logits, family
from tests.helpers.tiny_models import SENTENCES, make_tokenizer
from tests.helpers.viewer_data import DecodedDocument, decode
from tests.viewer.test_viewer_browser import DETAILS, assert_details

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TOLERANCE = 0.5 / UNITS_PER_NAT + 2e-4  # nats: half a unit, and the rounding of float32 in the models
PARAMS = [
    SamplingParams(),
    SamplingParams(alpha=0.02, temperature=1.3, top_k=12),
    SamplingParams.for_method("contrastive_tail"),
]


def page_of(name: str, params: SamplingParams) -> tuple[str, Recomputation]:
    """Return the page of a text under two models of a family, and what they predict."""
    models = family(name, 0), family(name, 1)
    lm = ContrastiveLM(*models, tokenizer=make_tokenizer())
    ids = lm.prompt_ids(SENTENCES[1], "")
    page = lm.explain(ids, params).to_html(f"A text under {name}")
    return page, Recomputation(*(all_logits(model, ids) for model in models), params)


def data_of(page: str) -> DecodedDocument:
    """Return what the page shows."""
    [data] = re.findall('<script type="application/json" id="viewer-data">(.*)</script>', page)
    [document] = decode(json.loads(data))
    return document


@pytest.mark.parametrize("params", PARAMS, ids=["contrastive", "top_k", "tail"])
@pytest.mark.parametrize("name", CONFIGS)
def test_data_of_the_page(name: str, params: SamplingParams) -> None:
    page, recomputed = page_of(name, params)
    document = data_of(page)
    assert document.params["method"] == params.method and document.text == f"<s>{SENTENCES[1]}"
    recomputed.check(document.tokens, TOLERANCE)


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "bloom"])
def test_panel_of_the_page(browser: "Browser", tmp_path: Path, name: str) -> None:
    """Percentages have three digits."""
    html, recomputed = page_of(name, PARAMS[1])
    path = tmp_path / "page.html"
    path.write_text(html, encoding="utf-8")
    tokens = data_of(html).tokens
    with open_page(browser, path) as opened:
        details = opened.page.evaluate(DETAILS)
        opened.check()
    for at in range(1, len(tokens), 3):
        token = tokens[at]
        expected = recomputed.prediction(at - 1, token.token_id, [one.token_id for one in token.listed])
        assert_details(details[at], expected, token.token_id, str(token.piece).replace(" ", "␣"))
