"""The artifacts that steps hand to each other, and the only code that knows their file formats.

An artifact is a directory: `artifact.json` (kind, format version, what made it, and for every
payload file its size and SHA-256) beside `.npy`, `.safetensors` and `.csv` payloads. It is
written to a temporary sibling and renamed, so a reader never sees half of one, and it holds
nothing that changes between identical runs (no time, no path, no host), so equal work gives equal
bytes. Arrays are memory-mapped on loading. Nothing is ever unpickled.
"""

from vitdc.artifacts.annotations import Annotations
from vitdc.artifacts.checkpoint import Checkpoint, TrainingState
from vitdc.artifacts.clustering import Clustering, ClusteringScores, SplitClustering, SplitScores
from vitdc.artifacts.dataset import Dataset, DatasetWriter, Split, Supervision, writing_dataset
from vitdc.artifacts.embeddings import Embeddings, SplitEmbeddings
from vitdc.artifacts.evaluation import ClusterRow, Evaluation
from vitdc.artifacts.fit import Fit
from vitdc.artifacts.rounds import (
    COLLAPSED,
    CONTINUE,
    CONVERGED,
    LOSS_ROSE,
    MAX_ROUNDS,
    OUT_OF_ROOM,
    SETTLED,
    Round,
    RoundPaths,
    RoundRow,
    Verdict,
)
from vitdc.artifacts.storage import (
    SPLITS,
    CsvWriter,
    Writer,
    check_replaceable,
    copy,
    create_array,
    digest,
    link,
    made_by,
    read_metadata,
    remove,
    replacing,
    replacing_file,
    sha256,
    verify,
    writing,
)

__all__ = [
    "COLLAPSED",
    "CONTINUE",
    "CONVERGED",
    "LOSS_ROSE",
    "MAX_ROUNDS",
    "OUT_OF_ROOM",
    "SETTLED",
    "SPLITS",
    "Annotations",
    "Checkpoint",
    "ClusterRow",
    "Clustering",
    "ClusteringScores",
    "CsvWriter",
    "Dataset",
    "DatasetWriter",
    "Embeddings",
    "Evaluation",
    "Fit",
    "Round",
    "RoundPaths",
    "RoundRow",
    "Split",
    "SplitClustering",
    "SplitEmbeddings",
    "SplitScores",
    "Supervision",
    "TrainingState",
    "Verdict",
    "Writer",
    "check_replaceable",
    "copy",
    "create_array",
    "digest",
    "link",
    "made_by",
    "read_metadata",
    "remove",
    "replacing",
    "replacing_file",
    "sha256",
    "verify",
    "writing",
    "writing_dataset",
]
