"""The sources of corpus text, one module per source."""
