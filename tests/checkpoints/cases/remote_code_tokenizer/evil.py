# A tokenizer that brings its own code: opening the folder must never run this.
from pathlib import Path

Path("REMOTE_CODE_RAN").touch()
from transformers import PreTrainedTokenizerFast


class Evil(PreTrainedTokenizerFast):
    pass
