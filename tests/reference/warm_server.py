"""What a run imports and sets up once a process, done in the server that the runs under attack are forked from.

Imported by that server only. Beside the verbs: what torch and pyarrow import when they are first asked for something, and
the tables that Hydra's parser builds at its first words.
"""

from __future__ import annotations

import hydra.main  # noqa: F401
import pyarrow.dataset  # noqa: F401
import reference.tiny_runs
import torch._dynamo  # noqa: F401 -- by the first optimizer

import metarec.verbs.eval
import metarec.verbs.train  # noqa: F401
from metarec.config.overrides import check_words

check_words("train", reference.tiny_runs.tiny())
