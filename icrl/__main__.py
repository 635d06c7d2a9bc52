"""`python -m icrl` is `icrl`."""

import sys

from icrl.cli import main

sys.exit(main())
