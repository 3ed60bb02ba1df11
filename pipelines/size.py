"""How many rounds fit into the one object that Kubernetes keeps of a run.

Argo Workflows keeps a run as one Workflow, and ends it when its specification and its compressed
status pass 1 MiB together: `workflow is longer than maximum allowed size`. Both grow with every
round, the one when the run starts and the other while it goes on.

The bound was measured on Kubeflow Pipelines 2.17.0 and Argo Workflows 4.0.5. KFP's own compiler
makes at most 3.6 bytes of specification per byte of the compiled pipeline as JSON, beside what
tasks ask of Kubernetes (rooms of 1 to 25 rounds).
"""

from __future__ import annotations

import json
from typing import Any

from google.protobuf import json_format

MAX_WORKFLOW = 1_048_576
"""Argo's limit, in bytes."""

_SPEC_FACTOR = 3.6
_STATUS_BASE = 48_000
_STATUS_PER_ROUND = 19_000


def workflow_size(pipeline: Any, num_rounds: int) -> int:
    """The most bytes that a run needs if all its rounds run.

    Args:
        pipeline: KFP's pipeline, compacted.
        num_rounds: The rounds that it has room for.
    """
    specification = _SPEC_FACTOR * _json_size(pipeline.pipeline_spec)
    settings = _json_size(pipeline.platform_spec)
    return round(specification + settings + _STATUS_BASE + _STATUS_PER_ROUND * num_rounds)


def most_rounds(sizes: dict[int, int]) -> int:
    """The most rounds that fit, from the sizes for two numbers of rounds: they grow evenly."""
    (less, small), (more, large) = sorted(sizes.items())
    per_round = (large - small) / (more - less)
    return int(less + (MAX_WORKFLOW - small) / per_round)


def _json_size(message: Any) -> int:
    return len(json.dumps(json_format.MessageToDict(message), separators=(",", ":")))
