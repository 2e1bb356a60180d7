"""What lies where a file should be: the pointers of Git LFS and the pages of web servers, called what they are."""

from __future__ import annotations

_LFS_START = b"version https://git-lfs"  # source: specification of Git LFS, "The Pointer"
_PAGE_STARTS = (b"<!doctype html", b"<html")

HEAD_BYTES = 512
"""As much of a file's beginning as :func:`stand_in` needs."""


def stand_in(head: bytes) -> str | None:
    """What the file is, as the end of a sentence about it, where it stands in place of the one that was meant.

    Args:
        head: the first :data:`HEAD_BYTES` of the file, or all of a shorter one.
    """
    if head.startswith(_LFS_START):
        return "is a Git LFS pointer, not the file itself: run git lfs pull in its repository"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGE_STARTS):
        return "is an HTML page, not the file itself: it was saved from a web address that does not give the file"
    if head and not head.strip(b"\0"):
        return "begins with nothing but zeros: the download or copy was not finished"
    return None
