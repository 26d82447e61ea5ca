"""One job in this process and the most memory that the process held: `python -m tests.ray.driver_peak jobs.NAME key=value …`.

The last line of standard output is the peak in bytes. Ray's workers are processes of their own and do not count.
"""

import importlib
import sys
from pathlib import Path


def main() -> None:
    """Entry point."""
    importlib.import_module(sys.argv[1]).main(sys.argv[2:])
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(line.split()[1]) * 1024)


if __name__ == "__main__":
    main()
