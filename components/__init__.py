"""The Kubeflow components: one per step of the method, and the bookkeeping around them.

A component is the step of its name with KFP's types: artifacts come in and go out, and `settings`
holds the sections of `params.yaml` that the step uses. Its body runs alone in a container, so it
imports what it needs itself; `vitdc.kubeflow` does what all bodies share.

`code`, a part of the settings, is a hash of the code that is to run. KFP's caches know parameters
and inputs, not code; and an image that holds other code refuses to run.

A round's checkpoint, embeddings and clustering travel as one artifact, the `state` of the round
that `cluster` writes (a directory as `vitdc.artifacts.RoundPaths` lays it out): every artifact that
passes a nested condition is written into the pipeline's specification once more per condition.
"""

from components.check import check
from components.cluster import cluster
from components.embed import embed
from components.evaluate import evaluate
from components.prepare import prepare
from components.pretrain import pretrain
from components.records import continue_record, end_record, start_record
from components.retrain import retrain
from components.version import find_version

STEPS = (prepare, pretrain, embed, cluster, retrain, check, evaluate)
BOOKKEEPING = (find_version, start_record, continue_record, end_record)

__all__ = [
    "BOOKKEEPING",
    "STEPS",
    "check",
    "cluster",
    "continue_record",
    "embed",
    "end_record",
    "evaluate",
    "find_version",
    "prepare",
    "pretrain",
    "retrain",
    "start_record",
]
