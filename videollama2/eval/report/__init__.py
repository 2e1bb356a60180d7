"""From rows of scored answers to numbers, tables, charts and comparisons."""
