"""``python -m gossamer.cli`` is the ``gossamer`` command."""

import sys

from .main import main

sys.exit(main())
