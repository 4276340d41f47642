"""What the rules of generators refuse, and the sensible command nearby (`config/test_rules.py`)."""

from __future__ import annotations

ON = "algorithm=generator residual=lora"
# rule, command line that it refuses, key and words of the line, a sensible command line nearby
CASES = [
    *(
        (
            "generates_whole_weights",
            f"algorithm=generator residual={name}",
            f"residual: {name}: residual={name} adapts whole weights",
            ON,
        )
        for name in ("off", "on", "head")
    ),
    (
        "generates_whole_weights",
        "algorithm=generator residual=rows",
        "residual: rows: with residual=rows a user has rows of his own items",
        "algorithm=generator residual=bias",
    ),
    (
        "generates_from_images",
        "algorithm=generator dataset=omniglot residual=context data_dir=d",
        "dataset: omniglot: a class of images has another number in every episode",
        "algorithm=maml dataset=omniglot residual=context data_dir=d",
    ),
    (
        "largest_head_unread",
        f"{ON} algorithm.head=basis algorithm.largest_head=10",
        "algorithm.largest_head: 10: does nothing with algorithm.head=basis",
        f"{ON} algorithm.largest_head=10",
    ),
    (
        "basis_beside_an_adapter",
        f"{ON} residual.adapter=DIR",
        "algorithm.head: auto: with algorithm.head=auto a basis may take the place",
        f"{ON} algorithm.head=factors residual.adapter=DIR",
    ),
]
