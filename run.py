"""Runs the server: `python run.py --help` explains the settings."""

import sys

# Every Python must be able to parse this file, so it has no newer syntax.
if sys.hexversion < 0x03090000:
    sys.exit("run.py: this is Python " + sys.version.split()[0] + "; bookings needs 3.9 or newer")

from bookings.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
