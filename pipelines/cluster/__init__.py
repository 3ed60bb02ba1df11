"""Submit the pipeline to a cluster with Kubeflow Pipelines, follow its run, schedule it.

A thin layer over `kfp.Client` and the API that it generates from Kubeflow's specification, with
bounded waiting, and with answers that say what to do. What kfp prints by itself is left out.
"""

from pipelines.cluster.connection import Cluster, connect
from pipelines.cluster.continuing import Continued, find_continued
from pipelines.cluster.cron import Cron
from pipelines.cluster.following import Ended, follow
from pipelines.cluster.scheduling import Scheduled, schedule
from pipelines.cluster.submitting import Submitted, submit

__all__ = [
    "Cluster",
    "Continued",
    "Cron",
    "Ended",
    "Scheduled",
    "Submitted",
    "connect",
    "find_continued",
    "follow",
    "schedule",
    "submit",
]
