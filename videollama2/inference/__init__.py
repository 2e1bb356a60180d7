"""Answers questions: the engine, its caches, and the published ``model_init`` and ``mm_infer``.

:class:`~videollama2.inference.engine.Engine` batches requests continuously and streams their answers.
:mod:`~videollama2.inference.api` holds the published functions, and :mod:`~videollama2.inference.back_end` defines the
interface of a class that can replace the engine.
"""
