"""Reports scored answers: numbers, tables, charts and comparisons."""
