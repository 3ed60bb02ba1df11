"""Run a component in its container: `python3 -m components kfp.dsl.executor_main ARGUMENTS`.

KFP's executor loads a component by the path of its module; the package knows its own path, wherever
it is installed.
"""

import sys
from pathlib import Path

from kfp.dsl.executor_main import executor_main

if __name__ == "__main__":
    sys.argv.append(f"--component_module_path={Path(__file__).with_name('__init__.py')}")
    executor_main()
