"""Jobs as callers know them: admitted, kept, watched, cancelled, gone on with."""
