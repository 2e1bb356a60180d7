"""Inference: the engine that answers requests, its caches, and ``model_init`` / ``mm_infer`` on top of it.

:class:`~videollama2.inference.engine.Engine` batches requests continuously and streams their answers.
:mod:`~videollama2.inference.api` holds the published functions, and :mod:`~videollama2.inference.back_end` says what
another class needs to stand in for the engine.
"""
