"""What every zrelay process needs: tensors, errors, channels, serving, configuration."""

import os

__version__ = "0.1.0"

# Before grpc is loaded, which reads them once:
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core logs to stderr on its own
os.environ.setdefault("GRPC_DNS_RESOLVER", "native")  # its own resolver asks DNS alone: no .local name, no NSS, no VPN
