"""Make the buckets named on the command line; one that exists is left as it is.

Runs as a Job in the cluster. Endpoint and keys come from the usual AWS_* variables.
"""

import sys

import boto3
from botocore.config import Config


def make_buckets(names: list[str]) -> None:
    client = boto3.client("s3", config=Config(retries={"total_max_attempts": 1}))
    existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in names:
        if name not in existing:
            client.create_bucket(Bucket=name)
        print(f"bucket {name}:", "there already" if name in existing else "made")


if __name__ == "__main__":
    make_buckets(sys.argv[1:])
