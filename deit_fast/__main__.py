"""`python -m deit_fast` is `deit-fast`; torchrun takes it by `-m deit_fast`."""

import sys

from .cli import main

sys.exit(main())
