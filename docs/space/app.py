"""The web page of VideoLLaMA 2 as a Hugging Face Space; address and port come from the Space's own variables."""

import os
import sys

from videollama2.serve.gradio_web_server_adhoc import main

if __name__ == "__main__":
    # The disk of a Space is lost when it sleeps, so votes are not taken.
    sys.exit(main(["--model-path", os.environ.get("MODEL", "videollama2-tiny"), "--vote-log", ""]))
