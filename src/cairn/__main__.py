"""`python -m cairn`: the command without its script. Knows the entry point alone."""

from __future__ import annotations

import sys

from cairn.cli.main import main

sys.exit(main())
