"""Sandboxes of the tests: a fresh one for each, or one that tests of content have in common."""

import asyncio
from functools import lru_cache

import pytest

from tests.serve.helpers.media import policy
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.untrusted_media.sandbox import Sandbox


def run(work, **options):
    """Run ``work(sandbox)`` with a fresh sandbox."""

    async def main():
        box = Sandbox(options.pop("policy", policy()), **options)
        try:
            return await work(box)
        finally:
            box.close()

    return asyncio.run(main())


def read(kind, source, options=None, **settings):
    if settings.keys() - {"resize"}:
        return run(lambda box: box.read(kind, source, options), **settings)
    return asyncio.run(shared(**settings).read(kind, source, options))


@lru_cache
def shared(resize=None):
    """A sandbox that tests of good and bad content have in common: nothing they do may break it."""
    box = Sandbox(policy(), resize, jobs_per_process=10_000)
    boxes.append(box)
    return box


boxes = []


def refusal(kind, source, options=None, **settings):
    with pytest.raises(RefusedMediaError) as caught:
        read(kind, source, options, **settings)
    return caught.value
