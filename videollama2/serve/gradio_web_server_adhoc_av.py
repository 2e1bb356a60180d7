"""Runs the web page with a model that sees and hears: ``python videollama2/serve/gradio_web_server_adhoc_av.py``.

It is the page of ``gradio_web_server_adhoc.py``, which serves such models too; here the default is the published one,
and a model without an audio encoder is refused. Visitors choose whether a video is seen, heard or both.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # For a script, Python adds its folder to the module path, where our module names would hide other packages.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

DEFAULT_MODEL = "DAMO-NLP-SG/VideoLLaMA2.1-7B-AV"
"""The model that the published command serves."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    from videollama2.serve.gradio_web_server_adhoc import serve_page

    return serve_page(arguments, DEFAULT_MODEL, must_hear=True)


if __name__ == "__main__":
    sys.exit(main())
