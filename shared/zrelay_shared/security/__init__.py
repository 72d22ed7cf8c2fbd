"""Who may call an installation: its certificate authority, its members, their permissions, and pairing."""
