"""``python -m gossamer.experiments`` is the ``gossamer`` command."""

import sys

from .cli import main

sys.exit(main())
