"""The service kit: what every service process shares, from its settings to its lifecycle."""
