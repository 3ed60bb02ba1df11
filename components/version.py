"""The version of the data, found anew in every run so that `prepare` can be cached."""

from typing import NamedTuple

from components.base import component


@component
def find_version(
    data: dict,
) -> NamedTuple("Version", [("data", dict), ("version", str)]):
    """Find out which version of the data there is now: commit, listing, or nothing to find."""
    from vitdc import kubeflow

    with kubeflow.reporting():
        return kubeflow.pin(data)
