"""Figures that others have printed, to stand beside measured ones: shown as "reported", compared with nothing.

Each set names its source and its protocol; `reported=NAME` in a configuration shows it under the run's table and keeps it
in metrics.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Reported:
    """`rows`: what they called it -> metric -> figure, as a share."""

    source: str
    rows: Mapping[str, Mapping[str, float]]


def _two(**rows: tuple[float, float]) -> dict[str, dict[str, float]]:
    return {name.replace("_", " "): {"hr@10": hr, "ndcg@10": ndcg} for name, (hr, ndcg) in rows.items()}


_S3REC = "Zhou et al. 2020, arXiv:2008.07873 (S3-Rec): leave-one-out, full ranking without seen items"
REPORTED: Mapping[str, Reported] = MappingProxyType(
    {
        "mars": Reported(
            "protocol published with doi:10.7910/DVN/BMY3UD; its neural rows are single runs with one seed",
            {
                "Session-KNN": {"hr@1": 0.2941, "hr@5": 0.3706, "hr@10": 0.3882, "ndcg@10": 0.3406, "mrr": 0.3281},
                **_two(GRU4Rec=(0.2824, 0.2299), MAML=(0.1765, 0.1555), warm_start_MAML=(0.2706, 0.2301)),
            },
        ),
        "s3rec_beauty": Reported(_S3REC, _two(Pop=(0.0152, 0.0068), GRU4Rec=(0.0283, 0.0137), SASRec=(0.0605, 0.0318))),
        "s3rec_sports": Reported(_S3REC, _two(Pop=(0.0094, 0.0053), GRU4Rec=(0.0204, 0.0110), SASRec=(0.0350, 0.0192))),
        "s3rec_yelp": Reported(_S3REC, _two(Pop=(0.0099, 0.0051), GRU4Rec=(0.0263, 0.0134), SASRec=(0.0274, 0.0136))),
        "s3rec_lastfm": Reported(_S3REC, _two(Pop=(0.0440, 0.0203), GRU4Rec=(0.0367, 0.0187), SASRec=(0.0688, 0.0390))),
        "ml1m_loo": Reported(
            "RecTools, gSASRec (Petrov & Macdonald 2023, arXiv:2308.07192) and HSTU authors: leave-one-out, full ranking",
            {
                **_two(gSASRec=(0.300, 0.173), BERT4Rec=(0.284, 0.154), GRU4Rec=(0.281, 0.165)),
                "SASRec, BCE": {"hr@10": 0.25, "ndcg@10": 0.134},
                "SASRec, CE": {"hr@10": 0.315, "ndcg@10": 0.182},
                "HSTU-large": {"hr@10": 0.329, "ndcg@10": 0.189},
            },
        ),
        "nested_wikitext2": Reported(
            "after Behrouz et al. 2025, Nested Learning: WikiText-2 by characters, 2,000 steps, one seed, TRAINING loss; "
            "no optimizer held its embedding and output layer, and its delta rule never ran",
            {
                "baseline": {"perplexity": 53.60},
                "surprise": {"perplexity": 53.24},
                "surprise, another setting": {"perplexity": 52.12},
                "delta rule": {"perplexity": 53.60},
                "all together": {"perplexity": 133.62},
            },
        ),
        "diginetica": Reported(
            "session-rec and GRU4Rec authors; protocols differ and the figures are approximate",
            {"V-SKNN": {"hr@20": 0.485}, "GRU4Rec": {"hr@20": 0.48}},
        ),
    }
)


def plain(name: str) -> dict[str, Any]:
    """For metrics.json."""
    found = REPORTED[name]
    return {"name": name, "source": found.source, "rows": {row: dict(of) for row, of in found.rows.items()}}
