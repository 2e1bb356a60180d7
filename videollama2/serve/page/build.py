"""Puts the web page together: the widgets of :mod:`.layout` and the event handlers of :mod:`.events`."""

from __future__ import annotations

import gradio as gr

from videollama2.serve.page.backends import PageBackend
from videollama2.serve.page.events import Events
from videollama2.serve.page.examples import DEMO
from videollama2.serve.page.layout import TITLE, PageSettings, draw_page

_EMPTY_CACHE = 3600, 86400
"""Intervals in seconds: every hour, uploads older than a day are deleted."""


def build_page(backend: PageBackend, settings: PageSettings) -> gr.Blocks:
    """Build the page without launching it.

    The page serves only bundled files and visitors' uploads, provided that ``GRADIO_TEMP_DIR`` was set to a separate
    folder beforehand (:mod:`videollama2.serve.page.server` does so).
    """
    gr.set_static_paths([DEMO])
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=_EMPTY_CACHE) as page:
        Events(backend, settings, draw_page(settings)).connect(page)
    page.queue(max_size=settings.max_queue, default_concurrency_limit=settings.concurrency, api_open=False)
    return page
