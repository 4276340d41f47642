"""Rules of optimizers: command lines refused, and sensible ones nearby (`tests/config/test_rules.py`)."""

from __future__ import annotations

RUN = "algorithm=supervised pretrain.optimizer=run"
CASES = [
    (
        "two_lengths",
        "pretrain.steps=100 pretrain.epochs=2",
        "pretrain.epochs: 2: does nothing: pretrain.steps is in its place",
        "pretrain.steps=100 pretrain.eval_every_epochs=2",
    ),
    (
        "two_lengths",
        "pretrain.eval_every=10 pretrain.eval_every_epochs=2",
        "pretrain.eval_every_epochs: 2: does nothing: pretrain.eval_every is in its place",
        "pretrain.eval_every=10 pretrain.epochs=2",
    ),
    (
        "two_lengths",
        "pretrain.steps=100 pretrain.eval_every=101",
        "pretrain.eval_every: 101: is more than pretrain.steps=100, so nothing would be validated -- give at most 100",
        "pretrain.steps=100 pretrain.eval_every=100",
    ),
    (
        "base_unused",
        "optimizer=cms optimizer.momentum=0.9",
        "optimizer.momentum: 0.9: does nothing: optimizer.base=adam has none",
        "optimizer=cms optimizer.base=sgd optimizer.momentum=0.9",
    ),
    (
        "base_unused",
        "optimizer=cms optimizer.base=sgd optimizer.eps=1e-6",
        "optimizer.eps: 1e-06: does nothing: optimizer.base=sgd has none",
        "optimizer=cms optimizer.base=adamw optimizer.eps=1e-6",
    ),
    (
        "base_unused",
        "optimizer=cms optimizer.decay=0.1",
        "optimizer.decay: 0.1: does nothing: with optimizer.base=adam nothing forgets",
        "optimizer=cms optimizer.base=delta_adam optimizer.decay=0.1",
    ),
    (
        "delta_unused",
        "optimizer=cms optimizer.base=delta_sgd optimizer.form=proximal optimizer.unstable=clip",
        "optimizer.unstable: clip: does nothing: the proximal form is stable for every decay",
        "optimizer=cms optimizer.base=delta_sgd optimizer.unstable=clip",
    ),
    (
        "chunks_of_one",
        "optimizer=cms optimizer.chunks=[1,1] optimizer.lr_scale=sqrt",
        "optimizer.lr_scale: sqrt: does nothing: every chunk is one step",
        "optimizer=cms optimizer.chunks=[1,2] optimizer.lr_scale=sqrt",
    ),
    (
        "parts_among_themselves",
        "optimizer=cms optimizer.levels=[[gru.*],[fc.*]]",
        "2 levels, and optimizer.chunks has 3 sizes -- give a chunk size for each level",
        "optimizer=cms optimizer.levels=[[gru.*],[fc.*]] optimizer.chunks=[1,2]",
    ),
    (
        "delta_unused",
        "optimizer=delta_adam optimizer.form=proximal optimizer.unstable=clip",
        "optimizer.unstable: clip: does nothing: the proximal form is stable for every decay",
        "optimizer=delta_adam optimizer.unstable=clip",
    ),
    (
        "delta_unused",
        "optimizer=delta_sgd optimizer.decay=0 optimizer.form=proximal",
        "optimizer.form: proximal: does nothing: with optimizer.decay=0 nothing forgets",
        "optimizer=delta_sgd optimizer.decay=0",
    ),
    (
        "pretrain_by_the_run",
        "pretrain.optimizer=run pretrain.weight_decay=0.1",
        "pretrain.weight_decay: 0.1: does nothing: with pretrain.optimizer=run the optimizer has its own",
        "pretrain.optimizer=run optimizer.weight_decay=0.1",
    ),
    (
        "pretrain_by_the_run",
        f"{RUN} optimizer=cms optimizer.lr=0.1",
        "optimizer.lr: 0.1: does nothing: pretraining has pretrain.lr -- set pretrain.lr",
        f"{RUN} optimizer=sgd optimizer.lr=0.1",
    ),
    (
        "pretrain_by_the_run",
        f"{RUN} optimizer=sgd optimizer.clip_norm=1",
        "optimizer.clip_norm: 1.0: does nothing: pretraining has pretrain.clip_norm",
        f"{RUN} optimizer=sgd pretrain.clip_norm=1",
    ),
    (
        "supervised_outer",
        "algorithm=supervised optimizer=cms",
        "does nothing: algorithm=supervised has no outer loop -- drop it, or set pretrain.*, or add pretrain.optimizer=run",
        f"{RUN} optimizer=cms",
    ),
]
