"""Cases of the rules about running text and perplexity, for config/test_rules.py."""

from __future__ import annotations

TEXT = "dataset=wikitext2 data_dir=d"
CASES = [
    ("characters_unused", "dataset.characters.length=9", "dataset=synthetic is no running text", f"{TEXT} seed=2"),
    (
        "characters_unused",
        f"{TEXT} dataset.columns.user=u",
        "dataset.columns.user: u: does nothing: running text is no log",
        f"{TEXT} dataset.characters.n_query=2",
    ),
    (
        "prompts_unused",
        f"{TEXT} dataset.prompts.n_query=3",
        "does nothing: dataset=wikitext2 has no prompts",
        f"{TEXT} dataset.characters.n_query=3",
    ),
    (
        "block_longer_than_the_model",
        f"{TEXT} dataset.characters.length=51",
        "dataset.characters.length: 51: is more than model.max_len=50",
        f"{TEXT} dataset.characters.length=64 model.max_len=64",
    ),
    (
        "perplexity_unused",
        "pretrain.monitor=perplexity objective=bce",
        "pretrain.monitor: perplexity: objective=bce trains no probabilities",
        "pretrain.monitor=perplexity objective=chunked_cross_entropy",
    ),
    ("text_objective", f"{TEXT} objective=bce", "tokens are scored all at once", f"{TEXT} objective=cross_entropy"),
    (
        "text_support",
        f"{TEXT} algorithm.inner.support_weights=recency",
        "have no order and no sessions",
        f"{TEXT} algorithm.inner.support_weights=uniform",
    ),
    ("text_reads_no_log", f"{TEXT} evaluation.candidates=unseen", "may well repeat a token", f"{TEXT} seed=2"),
    ("hold_out_unused", f"{TEXT} pretrain.hold_out=0.2", "documents in place of users", f"{TEXT} pretrain.hold_out=0"),
]
