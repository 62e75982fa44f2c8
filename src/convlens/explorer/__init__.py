"""Web pages and the report over explain's records."""
