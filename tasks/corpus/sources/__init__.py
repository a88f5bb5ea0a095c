"""Where corpus text comes from, one file a source."""
