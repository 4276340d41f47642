"""What the rules of text tasks refuse, and the sensible command nearby (`config/test_rules.py`)."""

from __future__ import annotations

TEXT = "dataset=prompts"
FILE = f"{TEXT} dataset.path=x.jsonl"
# rule, command line that it refuses, key and words of the line, a sensible command line nearby
CASES = [
    (
        "prompts_unused",
        "dataset.prompts.n_support=3",
        "dataset.prompts.n_support: 3: does nothing: dataset=synthetic",
        TEXT,
    ),
    (
        "prompts_unused",
        f"{TEXT} dataset.sessions.by=user",
        "dataset.sessions.by: user: does nothing: text tasks are no log",
        f"{TEXT} dataset.prompts.seed=1",
    ),
    (
        "prompts_unused",
        f"{TEXT} dataset.episodes.n_support=2",
        "text tasks are no log",
        f"{TEXT} dataset.prompts.n_support=2",
    ),
    (
        "embedded_unused",
        f"{FILE} dataset.prompts.n_letters=5",
        "dataset.prompts.n_letters: 5: does nothing: the examples are read from dataset.path",
        f"{TEXT} dataset.prompts.n_letters=5",
    ),
    (
        "embedded_sizes",
        f"{TEXT} dataset.prompts.n_examples=7",
        "an episode takes 8 examples of a domain -- give 8 or more",
        f"{TEXT} dataset.prompts.n_examples=8",
    ),
    (
        "embedded_sizes",
        f"{TEXT} dataset.prompts.n_letters=3",
        "fewer than three k",
        f"{TEXT} dataset.prompts.n_letters=4",
    ),
    (
        "embedded_sizes",
        f"{TEXT} dataset.prompts.easy_length=[4,3]",
        "the fewest characters are more than the most",
        f"{TEXT} dataset.prompts.easy_length=[3,3]",
    ),
    (
        "embedded_sizes",
        f"{TEXT} dataset.prompts.easy_length=[1,2]",
        "there are 110 such prompts, too few to draw n_examples=64 different ones",
        f"{TEXT} dataset.prompts.easy_length=[1,2] dataset.prompts.n_examples=55",
    ),
    (
        "splits_add_up",
        f"{TEXT} dataset.prompts.splits=[0.5,0.2,0.2]",
        "dataset.prompts.splits: [0.5,0.2,0.2]: add up to 0.9",
        f"{TEXT} dataset.prompts.splits=[0.5,0.2,0.3]",
    ),
    (
        "tokenizer_form",
        f"{TEXT} dataset.prompts.tokenizer=bpe:200",
        "dataset.prompts.tokenizer: bpe:200: N is the number of tokens",
        f"{TEXT} dataset.prompts.tokenizer=bpe:300",
    ),
    ("tokenizer_form", f"{TEXT} dataset.prompts.tokenizer=bpe:big", "give bpe:259 or more", f"{TEXT} model.max_len=60"),
    (
        "longer_than_the_model",
        f"{TEXT} dataset.prompts.max_tokens=51",
        "dataset.prompts.max_tokens: 51: is more than model.max_len=50 -- add model.max_len=51",
        f"{TEXT} dataset.prompts.max_tokens=51 model.max_len=51",
    ),
    (
        "text_objective",
        f"{TEXT} objective=bce",
        "objective: bce: tokens are scored",
        f"{TEXT} objective=chunked_cross_entropy",
    ),
    (
        "text_support",
        f"{TEXT} algorithm.inner.support_weights=recency",
        "the examples of a domain have no order",
        f"{TEXT} algorithm.inner.support_weights=uniform",
    ),
    ("text_reads_no_log", f"{TEXT} dataset.history=user", "text tasks have no history", "dataset.history=user"),
    (
        "text_reads_no_log",
        f"{TEXT} evaluation.candidates=unseen",
        "may well repeat a token",
        "evaluation.candidates=unseen",
    ),
    ("text_reads_no_log", f"{TEXT} train.sampler=window", "text tasks have no windows", "train.sampler=window"),
    (
        "order_unused",
        f"{TEXT} dataset.prompts.order=rising algorithm=supervised",
        "dataset.prompts.order: rising: does nothing: algorithm=supervised",
        f"{TEXT} algorithm=supervised",
    ),
    (
        "order_unused",
        f"{TEXT} dataset.prompts.order=easy_then_hard train.minutes=1",
        "easy_then_hard goes by the number of steps, which train.minutes leaves open",
        f"{TEXT} dataset.prompts.order=random train.minutes=1",
    ),
    (
        "prompts_pretrain_unused",
        f"{TEXT} dataset.prompts.pretrain=easy warm_start=x",
        "dataset.prompts.pretrain: easy: does nothing: with warm_start=x nothing is pretrained",
        f"{TEXT} dataset.prompts.pretrain=easy",
    ),
    ("random_residual", f"{TEXT} warm_start=none residual=on", "a residual would sit on frozen", f"{TEXT} residual=on"),
    (
        "images_and_models",
        f"{TEXT} model=conv4",
        "model: conv4: reads images",
        f"{TEXT} model=sasrec",
    ),
]
