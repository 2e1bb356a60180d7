"""Names of models: folders, repositories, and what is neither."""

import pytest

from videollama2.errors import CheckpointNotFoundError
from videollama2.hub import find_file


@pytest.mark.parametrize("path", ["/no/such/model", "./no-such-model", "models/of/mine", "~/model", "no..dots"])
def test_a_path_that_does_not_exist_is_told_without_the_hubs_rules(path):
    with pytest.raises(CheckpointNotFoundError, match="there is no such folder") as told:
        find_file(path, "config.json")
    assert str(told.value) == f"{path}: there is no such folder"


def test_a_name_that_a_repository_may_have_is_no_path():
    assert find_file("no/model", "config.json", local_files_only=True, cache_dir="no-such-cache") is None
