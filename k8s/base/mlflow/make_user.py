"""Make MLflow's user for the pipeline's tasks, or set its password to what the Secret says now.

Runs as a Job in the cluster. MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are the
administrator's, RUNNER_USERNAME and RUNNER_PASSWORD those of the user.
"""

import os
import sys

from mlflow.exceptions import RestException
from mlflow.server import get_app_client
from mlflow.server.auth.client import AuthServiceClient


def make_user(client: AuthServiceClient, name: str, password: str) -> str:
    """Return what was done."""
    try:
        client.create_user(name, password)
    except RestException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        client.update_user_password(name, password)
        return "password set"
    return "made"


if __name__ == "__main__":
    app = get_app_client("basic-auth", tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    user = os.environ["RUNNER_USERNAME"]
    if user == os.environ["MLFLOW_TRACKING_USERNAME"]:
        sys.exit(f"MLFLOW_TRACKING_USERNAME of runs/mlflow.env is the administrator, {user!r}")
    print(f"user {user}:", make_user(app, user, os.environ["RUNNER_PASSWORD"]))
