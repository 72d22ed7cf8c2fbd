"""What every zrelay process needs: tensors, errors, channels, serving, configuration."""

import os

__version__ = "0.1.0"

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before grpc is loaded: its C core logs to stderr on its own
