"""Runs the server: `python run.py --help` explains the settings."""

import os
import sys

# In isolated mode (-I, -P) Python does not search this folder for modules.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from bookings.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
