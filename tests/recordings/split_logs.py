"""Write what KFP handed to the tasks of a run to a file per task, for tests/test_recordings.py.

    for pod in $(kubectl -n kubeflow get pods -l pipeline/runid=RUN_ID -o name \
            --sort-by=.status.startTime); do
        kubectl -n kubeflow logs $pod -c main
    done | python tests/recordings/split_logs.py tests/recordings/executor-inputs

KFP's executor prints its input. The files of a run are numbered in the order of its tasks; those of
a run that continues another follow after them.
"""

import json
import re
import sys
from pathlib import Path

COMPONENT = re.compile(r"Loading KFP component \"(\w+)\".*?Got executor_input:\s*", re.DOTALL)


def main() -> None:
    directory, text = Path(sys.argv[1]), sys.stdin.read()
    directory.mkdir(exist_ok=True)
    first = len(list(directory.glob("*.json"))) + 1
    for number, match in enumerate(COMPONENT.finditer(text), first):
        executor_input, _ = json.JSONDecoder().raw_decode(text, match.end())
        path = directory / f"{number:02d}-{match[1]}.json"
        path.write_text(json.dumps(executor_input, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
