"""``python -m speechft``."""

import sys

from speechft.cli import main

sys.exit(main())
