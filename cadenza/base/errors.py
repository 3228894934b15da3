"""Our errors, named for what the caller can do, arranged as `modal.exception` arranges them.

The tree is that of semantics.md section 2. Nothing here derives from the builtin of the same name: `TimeoutError` and
`ConnectionError` below are not the builtin ones, on purpose. Users reach these names as ``cadenza.exception``.

An error that crosses a process boundary travels as ``{"kind": ..., "message": ...}``; `KINDS` is the table. The message
is the outside text: it says what to do and carries nothing from inside.
"""

from __future__ import annotations

import builtins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Error(Exception):
    """Root of all errors that this package raises on purpose."""


# What a request can come back with.
class AlreadyExistsError(Error):
    """A thing of that name is already there."""


class AuthError(Error):
    """The caller did not say who it is, or is not who it says."""


class InternalError(Error):
    """A fault of ours; the server's log has the rest."""


class InvalidError(Error):
    """The request can never succeed as it is: change it."""


class ConflictError(InvalidError):
    """The request does not fit the present state of the thing."""


class DataLossError(Error):
    """Stored data failed its check."""


class NotFoundError(Error):
    """There is no such thing."""


class PermissionDeniedError(Error):
    """The caller is known and may not do this."""


class ResourceExhaustedError(Error):
    """A limit is reached; later or smaller may work."""

    throttle: bool | None = None
    """Whether it is a limit on waiting calls, so that waiting helps; None where the server does not say."""


class ServiceError(Error):
    """The server did not answer as it should; the same call may work later."""


class UnimplementedError(Error):
    """The server does not do this."""


# What a function's run can come back with.
class RemoteError(Error):
    """The run failed and left no exception that could be unpickled here."""


class ImageBuildError(RemoteError):
    """A step of an image's build failed; ``image_id`` names the image when it is known."""

    def __init__(self, message: str = "", image_id: str | None = None) -> None:
        super().__init__(message)
        self.image_id = image_id


class ExecutionError(Error):
    """A fault around the user's code: a handle that is not ready, a result that cannot be decoded here."""


class InternalFailure(Error):
    """The platform lost the run; it is tried again by itself."""


class DeserializationError(Error):
    """Bytes could not be turned back into objects."""


class SerializationError(Error):
    """An object could not be turned into bytes."""


class RequestSizeError(Error):
    """The request is larger than the stated limit."""


class TimeoutError(Error):
    """Root of the time limits that are ours. Not the builtin TimeoutError."""


class FunctionTimeoutError(TimeoutError):
    """One attempt ran longer than the function's ``timeout``."""


class OutputExpiredError(TimeoutError):
    """The result was there and is no longer kept."""


class SandboxTimeoutError(TimeoutError):
    """A sandbox lived longer than its ``timeout``."""


class ExecTimeoutError(TimeoutError):
    """A command in a sandbox ran longer than its ``timeout``."""


class MountUploadTimeoutError(TimeoutError):
    """Sending source files took too long."""


class VolumeUploadTimeoutError(TimeoutError):
    """Sending files to a volume took too long."""


class InteractiveTimeoutError(TimeoutError):
    """No terminal answered in time."""


class ConnectionError(Error):
    """The server cannot be reached. Not the builtin ConnectionError."""


class VersionError(Error):
    """The two ends speak different versions of the protocol."""


class ClientClosed(Error):
    """The client was closed while the call was under way."""


class LogsFetchError(Error):
    """The logs asked for cannot be given."""


class SnapshotCreationError(Error):
    """A snapshot could not be made."""


class SandboxTerminatedError(Error):
    """The sandbox was ended from outside."""


class SandboxFilesystemError(Error):
    """Root of what file calls on a sandbox raise."""


class SandboxFilesystemNotFoundError(SandboxFilesystemError):
    """No such file or directory."""


class SandboxFilesystemDirectoryNotEmptyError(SandboxFilesystemError):
    """The directory has entries."""


class SandboxFilesystemIsADirectoryError(SandboxFilesystemError):
    """A file was needed, a directory is there."""


class SandboxFilesystemNotADirectoryError(SandboxFilesystemError):
    """A directory was needed, something else is there."""


class SandboxFilesystemPermissionError(SandboxFilesystemError):
    """The sandbox's user may not."""


class SandboxFilesystemFileTooLargeError(SandboxFilesystemError):
    """The file is larger than the call takes."""


class SandboxFilesystemPathAlreadyExistsError(SandboxFilesystemError):
    """Something is already at that path."""


class WorkspaceManagementError(Error):
    """A change of members or roles was refused."""


class ModuleNotMountable(Exception):
    """The module has no source file that could be sent."""


class InputCancellation(BaseException):
    """Raised inside user code when its input is cancelled. Not an Exception: a broad handler lets it through."""


# Warnings.
class DeprecationError(UserWarning):
    """A name or parameter on its way out: warned about while it works, raised once it is gone."""


class ServerWarning(UserWarning):
    """Something the server wants the user to know."""


class AsyncUsageWarning(UserWarning):
    """A blocking form was used inside a running event loop."""


class InternalAPIWarning(UserWarning):
    """A name that is not meant for users was used."""


class Bug(builtins.AssertionError):
    """A state that our own code says cannot be. Never caught, always reported."""


KINDS: dict[str, type[Error]] = {
    "already_exists": AlreadyExistsError,
    "unauthenticated": AuthError,
    "internal": InternalError,
    "invalid": InvalidError,
    "conflict": ConflictError,
    "data_loss": DataLossError,
    "not_found": NotFoundError,
    "permission_denied": PermissionDeniedError,
    "resource_exhausted": ResourceExhaustedError,
    "cancelled": ServiceError,
    "unavailable": ServiceError,  # after its other word: this one is said of a ServiceError
    "unimplemented": UnimplementedError,
    "version": VersionError,
    "image_build": ImageBuildError,
    "output_expired": OutputExpiredError,
    "execution": ExecutionError,
    "request_size": RequestSizeError,
}

_KIND_BY_CLASS = {cls: kind for kind, cls in KINDS.items()}


def kind_of(error: BaseException) -> str:
    """The wire's word for an error: that of its nearest class in `KINDS`, else ``internal``."""
    for cls in type(error).__mro__:
        kind = _KIND_BY_CLASS.get(cls)
        if kind is not None:
            return kind
    return "internal"


def from_kind(kind: str, message: str, detail: dict[str, Any] | None = None) -> Error:
    """The error that `kind` names; an unknown word, from a newer peer, is an `InternalError` that quotes it."""
    cls = KINDS.get(kind)
    if cls is None:
        return InternalError(f"{message} ({kind})")
    if cls is ImageBuildError:
        return ImageBuildError(message, image_id=(detail or {}).get("image_id"))
    error = cls(message)
    if isinstance(error, ResourceExhaustedError) and detail and "throttle" in detail:
        error.throttle = bool(detail["throttle"])
    return error


def simulate_preemption(wait_seconds: int, jitter_seconds: int = 0) -> None:
    """Raise KeyboardInterrupt in this process after about ``wait_seconds``, and end it 30 s later if it is still there.

    Main thread only. Source: semantics.md section 2.
    """
    import random
    import signal
    import sys
    import time

    if wait_seconds <= 0:
        raise InvalidError("wait_seconds must be positive")
    first = max(1, wait_seconds + random.randint(0, max(0, jitter_seconds)))

    def interrupt(signum: int, frame: Any) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)
        print(f"simulated preemption at {time.strftime('%X')}: 30 seconds left", file=sys.stderr)
        raise KeyboardInterrupt("simulated preemption")

    signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(first)


PUBLIC_MODULE = "cadenza.exception"
"""What users see as the home of these classes, in tracebacks and in pickles."""

for _name, _thing in list(globals().items()):
    if (
        isinstance(_thing, type)
        and issubclass(_thing, BaseException)
        and _thing is not Bug
        and _thing.__module__ == __name__
    ):
        _thing.__module__ = PUBLIC_MODULE
del _name, _thing
