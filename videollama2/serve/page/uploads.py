"""Defines widgets for visitors' files, which hand an event the paths of uploads and do nothing else with them.

Gradio's own widgets would fetch ``http(s)`` addresses that a client sends in place of an upload, and convert recordings
with ffmpeg. Visitors' files must be decoded only in the sandbox, and nothing is fetched for them.

These are classes rather than changed objects: whenever an event skips or updates a widget, Gradio makes a new one of
the same class for that visitor, and what was set on the object would be lost.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable
from typing import Any

import gradio as gr


def _as_uploaded(widget: Any, preprocess: Callable[[Any, Any], Any]) -> Any:
    """Return a subclass of a widget that refuses addresses and hands on what ``preprocess`` makes of an upload."""
    moved = widget.async_move_resource_to_block_cache

    async def only_uploads(self: Any, path: str | None) -> str | None:
        if path is not None and "://" in str(path):
            raise gr.Error("Upload the file itself; addresses are not opened.", print_exception=False)
        return await moved(self, path)

    fields = {
        "__module__": __name__,
        "is_template": True,  # the browser draws it as the class that it extends
        "async_move_resource_to_block_cache": only_uploads,
        "preprocess": preprocess,
    }
    # Gradio's metaclass writes a stub file beside the source of a new widget class, for the events that it adds. This
    # one adds none, so the class is made without that step, which must not write into an installed package.
    return ABCMeta.__new__(type(widget), f"Uploaded{widget.__name__}", (widget,), fields)


def _path(self: Any, payload: Any) -> str | None:
    return None if payload is None else payload.path


def _paths(self: Any, payload: Any) -> list[str]:
    return [] if payload is None else [each.path for each in getattr(payload, "root", [payload])]


UploadedFiles = _as_uploaded(gr.File, _paths)
"""Any number of files; events get a list of their paths."""

RecordedVideo = _as_uploaded(gr.Video, _path)
"""A recording of the camera; events get its path."""

RecordedSound = _as_uploaded(gr.Audio, _path)
"""A recording of the microphone; events get its path."""
