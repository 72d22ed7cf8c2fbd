"""`python -m zrelay_client` is `zrelay`."""

import sys

from zrelay_client.cli import main

sys.exit(main())
