"""Measures a run and tells how it went: the meter, the report, the plot of losses, the last lines."""
