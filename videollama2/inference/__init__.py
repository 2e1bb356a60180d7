"""Answers: the public faces ``model_init`` and ``mm_infer``, and the cache of visual tokens under them."""
