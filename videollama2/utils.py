"""``disable_torch_init``, which programs written for the published code call before they load a model."""


def disable_torch_init() -> None:
    """Kept for its callers; there is nothing left to switch off.

    The published function replaced the initialisation of torch's layers for the whole process, to save time while
    loading. transformers now builds models without initialising weights that a file provides.
    """
