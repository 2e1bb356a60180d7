"""The report: numbers, tables, charts and comparisons from scored answers."""
