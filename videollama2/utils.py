"""Offers ``disable_torch_init``, which programs written for the published code call before loading a model."""


def disable_torch_init() -> None:
    """Do nothing. The function is kept for existing callers.

    The published function replaced the initialisation of torch's layers in the whole process to save loading time.
    transformers now builds models without initialising weights that are read from a file.
    """
