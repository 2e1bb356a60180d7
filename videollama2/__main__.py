"""``python -m videollama2`` is the ``videollama2`` command."""

import sys

from videollama2.cli import main

sys.exit(main())
