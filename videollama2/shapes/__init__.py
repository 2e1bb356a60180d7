"""The built-in world of moving shapes: scenes, questions, sets, and how its model is made.

Nothing else in the package imports this one.
"""
