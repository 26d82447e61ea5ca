"""The C library's memory: what a process frees it keeps, for the next tensor."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGEST_KEPT_BYTES, _KEPT_BYTES = 32 << 20, 256 << 20


def keep_freed_memory() -> None:
    """Let the process keep up to 256 MB that it freed, in pieces of up to 32 MB, where the C library is glibc.

    By its own choice glibc gives large tensors back to the system and gets new pages for the next ones: a fifth to a half of the mask
    decoder's time went into page faults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
