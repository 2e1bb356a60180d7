"""Recognises files that stand in for others: pointers of Git LFS, and HTML pages saved in place of a download."""

from __future__ import annotations

_LFS_START = b"version https://git-lfs"  # source: specification of Git LFS, "The Pointer"
_PAGE_STARTS = (b"<!doctype html", b"<html")

HEAD_BYTES = 512
"""Number of bytes at the beginning of a file that :func:`stand_in` needs."""


def stand_in(head: bytes) -> str | None:
    """Return a description of a stand-in file, as the end of a sentence about the file; None for a real file.

    Args:
        head: the first :data:`HEAD_BYTES` of the file, or the whole file if it is shorter.
    """
    if head.startswith(_LFS_START):
        return "is a Git LFS pointer, not the file itself: run git lfs pull in its repository"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGE_STARTS):
        return "is an HTML page, not the file itself: it was saved from a web address that does not give the file"
    if head and not head.strip(b"\0"):
        return "begins with nothing but zeros: the download or copy was not finished"
    return None
