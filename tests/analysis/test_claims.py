"""The papers' claims beside records."""

import statistics
from typing import Any

import pytest

from actbench.analysis.claims import Claim, compare_claims
from actbench.report.claims import claimed_text, measured_text
from tests.report.records import MEBIBYTE, compared, measured
from tests.runs.example import ENVIRONMENT


def found(records: list[dict[str, Any]]) -> dict[tuple[str, str, str], Claim]:
    (comparison,) = compared(records)
    return {(claim.kind, claim.scheme, claim.against): claim for claim in compare_claims(comparison)}


def test_measured_figures_are_those_of_the_records() -> None:
    claims = found(measured())
    saved = {"fp32": int(48.3 * MEBIBYTE), "exact": int(1.57 * MEBIBYTE), "blockwise": int(1.29 * MEBIBYTE)}
    for scheme, against in (("exact", "fp32"), ("blockwise", "fp32"), ("blockwise", "exact")):
        claim = claims["activation", scheme, against]
        assert claim.measured == pytest.approx((saved[against] - saved[scheme]) / saved[against])
    assert claims["time", "exact", "fp32"].measured == pytest.approx(0.2273 / 0.0941 - 1)
    assert claims["time", "blockwise", "exact"].measured == pytest.approx(0.2211 / 0.2273 - 1)
    score = claims["score", "blockwise", "exact"]
    assert score.interval is not None
    assert score.measured == pytest.approx(statistics.fmean([0.018, 0.018 - 0.0031, 0.018]))
    assert score.interval.pairs == 3
    assert len(claims) == 7


def test_the_texts_are_the_abstracts() -> None:
    claims = found(measured())
    texts = {key: claimed_text(claim, "en") for key, claim in claims.items()}
    assert texts["activation", "exact", "fp32"] == "up to 96.9% [abs]"
    assert texts["activation", "blockwise", "fp32"] == "over 95% [abs]"
    assert texts["activation", "blockwise", "exact"] == "over 15% [abs]"
    assert texts["time", "exact", "fp32"] == "+10% to +25% [abs]"
    assert texts["time", "blockwise", "exact"] == "about −5% [abs]"
    assert texts["score", "exact", "fp32"] == "−0.50 to −0.20 [abs]"
    assert texts["score", "blockwise", "exact"] == "similar [abs]"
    assert measured_text(claims["time", "blockwise", "exact"]) == "−2.73%"
    assert claimed_text(claims["score", "blockwise", "exact"], "ja") == "同程度 [abs]"


def test_nothing_is_measured_of_one_seed_or_a_few_epochs() -> None:
    claims = found(measured(1))
    assert measured_text(claims["score", "exact", "fp32"]) == "–"
    claims = found(measured(epoch_seconds=[1.0] * 5))
    assert claims["time", "exact", "fp32"].measured is None


def test_schemes_that_were_not_run_and_other_machines_are_left_out() -> None:
    assert {key[1:] for key in found(measured()[:6])} == {("exact", "fp32")}
    assert found(measured()[6:]) == {}
    other = [record | {"environment": ENVIRONMENT | {"device_name": "another"}} for record in measured()[3:]]
    (comparison,) = compared(measured()[:3] + other, across_machines=True)
    assert {(claim.scheme, claim.against) for claim in compare_claims(comparison)} == {("blockwise", "exact")}
