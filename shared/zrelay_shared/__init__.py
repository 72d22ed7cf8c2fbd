"""Code that all zrelay processes share: tensors, errors, channels, the service kit and the configuration."""

import os

__version__ = "0.1.0"

# grpc reads these once, when it is imported:
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core would log to stderr
os.environ.setdefault("GRPC_DNS_RESOLVER", "native")  # its own resolver only uses DNS: no .local names, NSS or VPN
