"""``python -m gossamer`` is the ``gossamer`` command."""

import sys

from .cli.main import main

sys.exit(main())
