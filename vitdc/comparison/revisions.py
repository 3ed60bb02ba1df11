"""The result of a pipeline run at a Git revision: a branch, tag, commit or DVC experiment.

Nothing is checked out: DVC reads what it needs from its cache or remote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitdc.artifacts import Evaluation
from vitdc.comparison.runs import RunResult, from_evaluation
from vitdc.errors import InputError, one_line

WORKSPACE = "workspace"  # DVC's own word for what is not committed
RESULTS = "results"


def in_repository() -> bool:
    """Whether the working directory belongs to a DVC repository."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        Repo.find_root()
    except NotDvcRepoError:
        return False
    return True


def find_revision(name: str) -> RunResult | None:
    """The result at a revision; None if nothing has that name.

    Args:
        name: A DVC experiment, anything that Git understands, or "workspace".

    Raises:
        InputError: The revision has no result, or it is neither in the cache nor on the remote.
    """
    from dvc.scm import RevError

    try:
        with _opened(name) as tree:
            commit = str(tree.repo.get_rev())
            description = _read_json(tree, name, "artifact.json")
            metrics = _read_json(tree, name, "metrics.json")
    except RevError as error:
        if "ambiguous" in str(error).lower():
            raise InputError(f"{name}: {one_line(error)}") from None
        return None
    id = WORKSPACE if name == WORKSPACE else commit
    metadata = description["metadata"]
    evaluation = Evaluation.from_metadata(metadata, metrics, Path(RESULTS))
    return from_evaluation(evaluation, id=id, label=name, source="DVC")


@contextmanager
def _opened(name: str) -> Iterator[Any]:
    from dvc.api import DVCFileSystem
    from dvc.scm import NoSCMError, RevError, SCMError

    tree = None
    try:
        tree = DVCFileSystem(rev=None if name == WORKSPACE else name)
        yield tree
    except (InputError, RevError):
        raise
    except NoSCMError:
        raise InputError(
            f"{name}: the DVC repository here is without Git; only workspace"
        ) from None
    except SCMError as error:
        raise InputError(f"{name}: {one_line(error)}") from None
    finally:
        if tree is not None:
            tree.close()


def _read_json(tree: Any, name: str, file: str) -> Any:
    path = f"{RESULTS}/{file}"
    if not tree.exists(path):
        raise InputError(
            f"{name}: has no {path}; run the pipeline there and commit dvc.lock, or name a DVC"
            " experiment (`dvc exp list`)"
        )
    try:
        return json.loads(tree.read_text(path))
    except FileNotFoundError:
        raise InputError(
            f"{name}: {path} is neither in the DVC cache nor on the remote; `dvc repro` makes it"
            " (workspace), `dvc push` shares it from where it was made"
        ) from None
    except ValueError:
        raise InputError(f"{name}: {path} is not JSON; run `dvc repro` again") from None
    except Exception as error:  # every remote has errors of its own
        raise InputError(
            f"{name}: {path} cannot be read from the DVC remote ({one_line(error)}); check your"
            " access to it"
        ) from error
