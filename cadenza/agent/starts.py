"""What a container's start reads: recorded, for the next start of its image, and read ahead by what earlier ones read.

Methods block for milliseconds; call them from a thread, one at a time.
"""

from __future__ import annotations

from typing import Optional

from cadenza.base.errors import Error
from cadenza.fs.trace import Recorder
from cadenza.fs.traces import Traces


class Start:
    """One container's, on an image's tree. Whatever fails here, the start goes on."""

    def __init__(self, traces: Traces, tree: bytes, merged: str) -> None:
        self._traces = traces
        self._tree = tree
        self._merged = merged
        self._recorder: Optional[Recorder] = None

    def read_ahead(self) -> None:
        """Beside all that a start does before it reads: it finds its files in memory."""
        try:
            self._traces.read_ahead(self._tree)
        except (Error, OSError):
            return

    def begin(self) -> None:
        """Its root is mounted, and nothing runs in it yet."""
        if not self._traces.begin(self._tree):
            return
        recorder = Recorder(self._merged)
        recorder.start()
        if recorder.why:
            self._traces.drop(self._tree)
        else:
            self._recorder = recorder

    def end(self, ready: bool) -> None:
        """It is ready, or it is about to be unmounted: what was opened by then is what a start reads."""
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        paths = recorder.stop()
        try:
            if ready and paths:
                self._traces.keep(self._tree, paths)
                return
        except (Error, OSError):
            pass
        self._traces.drop(self._tree)
