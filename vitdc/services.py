"""Whether the services that tasks use answer from here: `python -m vitdc.services` in their image.

`python -m pipelines doctor` runs it in a pod that is set up as the tasks are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from vitdc.errors import InputError, one_line

_S3_REMEDY = "check AWS_ENDPOINT_URL, the keys and the network policy of the tasks"
_MLFLOW_REMEDY = "check MLFLOW_TRACKING_URI, the user and the network policy of the tasks"


def check_mlflow() -> str:
    """Ask MLflow for an experiment.

    Raises:
        InputError: It cannot be used.
    """
    if "MLFLOW_TRACKING_URI" not in os.environ:
        raise InputError("MLFLOW_TRACKING_URI is not set; kubernetes.endpoints names its ConfigMap")
    from vitdc.tracking.store import open_store, store_name

    with open_store(way_out=_MLFLOW_REMEDY) as client:
        client.search_experiments(max_results=1)
    return f"{store_name()} answers"


def check_s3() -> str:
    """Ask the store for its buckets; a key that may not list them is known all the same.

    Raises:
        InputError: It cannot be used.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 1})
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    try:
        boto3.client("s3", config=config).list_buckets()
    except ClientError as error:
        if error.response["Error"]["Code"] != "AccessDenied":
            raise InputError(f"{endpoint}: {one_line(error)}; {_S3_REMEDY}") from None
        return f"{endpoint} answers; the key may not list its buckets"
    except BotoCoreError as error:
        raise InputError(f"{endpoint}: {one_line(error)}; {_S3_REMEDY}") from None
    return f"{endpoint} answers"


CHECKS: dict[str, Callable[[], str]] = {"MLflow": check_mlflow, "S3": check_s3}


def main() -> None:
    """Print a line of JSON per service: its name, whether it can be used, and words."""
    for service, check in CHECKS.items():
        try:
            found = [service, True, check()]
        except InputError as error:
            found = [service, False, str(error)]
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
