"""Rules of `algorithm.inner.rule`: command lines refused, and sensible ones nearby (`tests/config/test_rules.py`)."""

from __future__ import annotations

DELTA = "algorithm.inner.rule=delta"
CASES = [
    (
        "forgetting_unused",
        "residual=head algorithm.inner.decay=0.1",
        "algorithm.inner.decay: 0.1: does nothing: algorithm.inner.rule=sgd forgets nothing",
        f"residual=head {DELTA} algorithm.inner.decay=0.1",
    ),
    (
        "forgetting_unused",
        "residual=head algorithm.inner.form=proximal",
        "algorithm.inner.form: proximal: does nothing: algorithm.inner.rule=sgd forgets nothing",
        f"residual=head {DELTA} algorithm.inner.form=proximal",
    ),
    (
        "forgetting_unused",
        f"residual=head {DELTA} algorithm.inner.decay=0 algorithm.inner.unstable=clip",
        "algorithm.inner.unstable: clip: does nothing: with algorithm.inner.decay=0 nothing forgets",
        f"residual=head {DELTA} algorithm.inner.decay=0",
    ),
    (
        "forgetting_unused",
        f"residual=head {DELTA} algorithm.inner.form=proximal algorithm.inner.unstable=clip",
        "algorithm.inner.unstable: clip: does nothing: the proximal form is stable for every decay",
        f"residual=head {DELTA} algorithm.inner.unstable=clip",
    ),
    (
        "forgetting_unused",
        f"residual=head {DELTA} algorithm.inner.steps=0",
        "algorithm.inner.rule: delta: does nothing: algorithm.inner.steps=0 adapts nothing",
        f"residual=head {DELTA} algorithm.inner.steps=1",
    ),
    (
        "forgetting_without_matrix",
        f"residual=context {DELTA}",
        "algorithm.inner.rule: delta: residual=context adapts numbers beside the weights",
        f"residual=off algorithm=anil {DELTA}",
    ),
    (
        "forgetting_without_matrix",
        f"residual=ia3 algorithm=cavia {DELTA}",
        "algorithm.inner.rule: delta: residual=ia3 adapts numbers beside the weights",
        f"residual=lora {DELTA}",
    ),
    (
        "forgetting_without_matrix",
        f"residual=bias {DELTA}",
        "algorithm.inner.rule: delta: residual=bias adapts vectors, and only a matrix has inputs",
        f"residual=[bias,lora] {DELTA}",
    ),
    (
        "forgetting_without_matrix",
        f"residual=rows {DELTA}",
        "algorithm.inner.rule: delta: residual=rows adapts single rows of tables",
        f"residual=head {DELTA}",
    ),
]
