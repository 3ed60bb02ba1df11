"""Run a command and print the peak memory of its largest process.

    python benchmarks/peak_memory.py vitdc run --params params/fashion-mnist.yaml --output outputs/f

The peak is the resident set size, memory-mapped pages included, as the kernel counts it.
"""

import resource
import subprocess
import sys
import time


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    start = time.perf_counter()
    code = subprocess.run(sys.argv[1:], check=False).returncode
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # KiB on Linux
    elapsed = time.perf_counter() - start
    print(f"peak memory of the largest process: {peak / 2**20:.2f} GiB in {elapsed:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
