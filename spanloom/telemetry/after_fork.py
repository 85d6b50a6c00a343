"""What a forked child does anew: threads, locks and files of its parent are not its own."""

import os
import weakref
from collections.abc import Callable


def call_in_child(method: Callable[[], None]) -> None:
    """Call an object's method in each forked child, for as long as the object is there."""
    again = weakref.WeakMethod(method)

    def in_child() -> None:
        if call := again():
            call()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=in_child)
