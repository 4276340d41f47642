"""What the rules of memories and of lists of residuals refuse, and the sensible command nearby (`config/test_rules.py`)."""

from __future__ import annotations

NEITHER = "residual=memory algorithm=fomaml"
# rule, command line that it refuses, key and words of the line, a sensible command line nearby
CASES = [
    *(
        (
            "needs_what_adapts",
            f"residual=memory algorithm={name}",
            f"algorithm: {name}: learns from what adapts, and with residual=memory nothing does -- use algorithm=fomaml",
            f"residual=[memory,context] algorithm={name}",
        )
        for name in ("reptile", "imaml", "anil", "cavia")
    ),
    (
        "steps_of_nothing",
        f"{NEITHER} algorithm.inner.steps=3",
        "algorithm.inner.steps: 3: does nothing: with residual=memory nothing adapts",
        f"{NEITHER} algorithm.inner.steps=0",
    ),
    (
        "steps_of_nothing",
        f"{NEITHER} algorithm.inner.lr=0.1",
        "algorithm.inner.lr: 0.1: does nothing",
        "residual=[memory,context] algorithm.inner.lr=0.1",
    ),
    (
        "steps_of_nothing",
        "residual=memory algorithm=maml algorithm.order=first",
        "algorithm.order: first: does nothing",
        "residual=[memory,lora] algorithm=maml algorithm.order=first",
    ),
    (
        "steps_of_nothing",
        "residual=memory algorithm.inner.adapt=[memory.*]",
        "algorithm.inner.adapt: [memory.*]: does nothing",
        "residual=[memory,context] algorithm.inner.adapt=[memory.*]",
    ),
    (
        "steps_of_nothing",
        "residual=memory evaluation.test_steps=2",
        "evaluation.test_steps: 2: does nothing",
        "residual=[memory,context] evaluation.test_steps=2",
    ),
    (
        "outer_of_nothing",
        "residual=memory optimizer.lr=0.1",
        "optimizer.lr: 0.1: does nothing: all that residual=memory learns has residual.lr",
        "residual=memory optimizer.lr=0.1 residual.train_weights=true",
    ),
    (
        "outer_of_nothing",
        "residual=memory optimizer=adamw optimizer.weight_decay=0.1",
        "optimizer.weight_decay: 0.1: does nothing",
        "residual=[memory,context] optimizer=adamw optimizer.weight_decay=0.1",
    ),
    (
        "memory_of_images",
        "dataset=omniglot data_dir=d residual=memory algorithm=fomaml",
        "residual: memory: images have no history",
        "residual=memory algorithm=fomaml",
    ),
    (
        "memory_of_histories",
        "dataset.history=user residual=[memory,context]",
        "dataset.history: user: prefixes hold the support already",
        "dataset.history=user residual=context",
    ),
    (
        "parts_among_themselves",
        "residual=[memory,on] residual.on.l2=0.1",
        "residual.on.l2: 0.1: in a list it would pull what the other parts adapt as well -- drop it",
        "residual=on residual.l2=0.1",
    ),
    (
        "parts_among_themselves",
        "residual=[bias,memory] residual.bias.alpha=0",
        "residual.bias.alpha: 0.0: with alpha 0 no weight can move",
        "residual=[bias,memory] residual.bias.alpha=2",
    ),
    (
        "adapts_beside",
        "residual=[memory,lora] algorithm=cavia",
        "algorithm=cavia adapts contexts, and residual=memory+lora has none",
        "residual=[memory,context] algorithm=cavia residual.context.train_weights=false",
    ),
    (
        "random_residual",
        "residual=[memory,lora] warm_start=none",
        "a residual would sit on frozen random weights",
        "residual=[memory,context] warm_start=none",
    ),
]
