"""``python -m gossamer`` runs the ``gossamer`` command."""

import sys

from .cli.main import main

sys.exit(main())
