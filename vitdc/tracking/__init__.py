"""Where runs are recorded: the only package that imports mlflow.

There is one MLflow run per distinct set of parameters (and data set), whoever records it and how
often. `refine` tells what it knows after every round, so that a person can watch; `evaluate`
tells everything again, so that the record is complete even where DVC skipped the stages before.
Telling the same twice adds nothing. Telling something else about the same parameters (the code or
the machine changed) moves the old run to MLflow's trash and makes a fresh one.

Where every step is a process of its own (Kubeflow), `start_record` makes the run, hands its id on,
`resume_record` continues it, and `end_record` says how the whole ended. If Kubeflow's MLflow plugin
has made a run for the pipeline (MLFLOW_RUN_ID is the task's nested one), both runs name each other.

What a runner tells goes through an outbox on disk and is delivered in the background, so that a
training waits for no server and survives its absence; only making the run is done at once, so that
a wrong address is known before hours of work.

Records go to `sqlite:///mlflow.db` or wherever MLFLOW_TRACKING_URI points. Beside an SQLite file,
artifacts lie in the folder `mlartifacts`; a server decides for itself where its artifacts lie.

Importing mlflow takes seconds, so that happens when a tracker is opened, not before.

naming          names, steps, and which parameters identify a run
describing      data and results in the forms that MLflow's pages show
provenance      code, image and user, and DVC's hashes of data and models
store           the store that MLFLOW_TRACKING_URI names
record          one MLflow run
journal         what MLflow has not taken yet, on disk
outbox          its delivery in the background
monitor         the load of the machine while a run works
waiting         what earlier processes could not deliver
tracker         what a runner tells while it works
pipeline_runs   the record of a Kubeflow pipeline run
reading         recorded runs, read back
registry        registered models: names, versions, aliases
packaging       a model directory as an MLflow model
promotion       which version is the champion, and why
download        a model of MLflow as a directory on this machine
pyfunc          a model as `mlflow models serve` loads it
"""

from vitdc.tracking.download import download_model
from vitdc.tracking.naming import Point
from vitdc.tracking.pipeline_runs import (
    RECORD_VARIABLE,
    continue_record,
    end_record,
    find_model,
    record_evaluated,
    resume_record,
    start_record,
    watch_training,
)
from vitdc.tracking.promotion import Decision, promote
from vitdc.tracking.provenance import IMAGE_VARIABLE
from vitdc.tracking.tracker import (
    MlflowTracker,
    NullTracker,
    Tracker,
    log_evaluation,
    open_tracker,
)

__all__ = [
    "IMAGE_VARIABLE",
    "RECORD_VARIABLE",
    "Decision",
    "MlflowTracker",
    "NullTracker",
    "Point",
    "Tracker",
    "continue_record",
    "download_model",
    "end_record",
    "find_model",
    "log_evaluation",
    "open_tracker",
    "promote",
    "record_evaluated",
    "resume_record",
    "start_record",
    "watch_training",
]
