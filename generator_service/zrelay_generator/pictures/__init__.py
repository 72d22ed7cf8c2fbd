"""Pictures as files: read, written, with their provenance inside."""
