"""Cadenza: serverless compute on machines that you own.

The names below are all that is public. Each is imported when it is first used, so that `import cadenza` costs next to
nothing and loads the standard library alone.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is slow to import, and a container's start is counted in milliseconds
if TYPE_CHECKING:
    from typing import Any

    from cadenza.base.errors import Error as Error
    from cadenza.sdk import experimental as experimental
    from cadenza.sdk import settings as config
    from cadenza.sdk import types as call_graph
    from cadenza.sdk import types as types
    from cadenza.sdk.app import App as App
    from cadenza.sdk.budget import Budget as Budget
    from cadenza.sdk.call import FunctionCall as FunctionCall
    from cadenza.sdk.client import Client as Client
    from cadenza.sdk.cls import Cls as Cls
    from cadenza.sdk.context_api import current_function_call_id as current_function_call_id
    from cadenza.sdk.context_api import current_input_id as current_input_id
    from cadenza.sdk.context_api import interact as interact
    from cadenza.sdk.context_api import is_local as is_local
    from cadenza.sdk.decorators import asgi_app as asgi_app
    from cadenza.sdk.decorators import batched as batched
    from cadenza.sdk.decorators import concurrent as concurrent
    from cadenza.sdk.decorators import enter as enter
    from cadenza.sdk.decorators import exit as exit
    from cadenza.sdk.decorators import fastapi_endpoint as fastapi_endpoint
    from cadenza.sdk.decorators import method as method
    from cadenza.sdk.decorators import web_endpoint as web_endpoint
    from cadenza.sdk.decorators import web_server as web_server
    from cadenza.sdk.decorators import wsgi_app as wsgi_app
    from cadenza.sdk.environment import Environment as Environment
    from cadenza.sdk.function import Function as Function
    from cadenza.sdk.image import Image as Image
    from cadenza.sdk.later import clustered as clustered
    from cadenza.sdk.later import sessioned as sessioned
    from cadenza.sdk.output import enable_output as enable_output
    from cadenza.sdk.parameter import parameter as parameter
    from cadenza.sdk.patterns import FilePatternMatcher as FilePatternMatcher
    from cadenza.sdk.retries import Retries as Retries
    from cadenza.sdk.schedule import Cron as Cron
    from cadenza.sdk.schedule import Period as Period
    from cadenza.sdk.secret import Secret as Secret
    from cadenza.sdk.workspace import Workspace as Workspace

__version__ = "0.1.0"

_HOMES = {
    "App": "app",
    "Budget": "budget",
    "FunctionCall": "call",
    "Client": "client",
    "Cls": "cls",
    "current_function_call_id": "context_api",
    "current_input_id": "context_api",
    "interact": "context_api",
    "is_local": "context_api",
    "asgi_app": "decorators",
    "batched": "decorators",
    "concurrent": "decorators",
    "enter": "decorators",
    "exit": "decorators",
    "fastapi_endpoint": "decorators",
    "method": "decorators",
    "web_endpoint": "decorators",
    "web_server": "decorators",
    "wsgi_app": "decorators",
    "Environment": "environment",
    "Function": "function",
    "Image": "image",
    "clustered": "later",
    "sessioned": "later",
    "enable_output": "output",
    "parameter": "parameter",
    "FilePatternMatcher": "patterns",
    "Retries": "retries",
    "Cron": "schedule",
    "Period": "schedule",
    "Secret": "secret",
    "Workspace": "workspace",
}
"""Name to the module of `cadenza.sdk` that has it."""

_MODULES = {
    "call_graph": "cadenza.sdk.types",
    "config": "cadenza.sdk.settings",
    "exception": "cadenza.exception",
    "experimental": "cadenza.sdk.experimental",
    "types": "cadenza.sdk.types",
}

_UNBUILT = (
    "CloudBucketMount", "Cluster", "Dict", "NetworkFileSystem", "Probe", "Proxy", "Queue",
    "Sandbox", "SandboxSnapshot", "SchedulerPlacement", "Server", "Tunnel", "Volume",
    "forward",
)  # fmt: skip

_REMOVED = {
    "Stub": "it was renamed: use App",
    "Mount": "it is no longer public: use Image.add_local_file, add_local_dir or add_local_python_source",
    "build": "it was removed: use Image.run_function, or Image.run_commands",
    "gpu": 'its classes were removed: use strings, such as gpu="H100" or gpu="A100-80GB:2"',
    "snapshot": "it was removed: use App.function(enable_memory_snapshot=True)",
    "file_io": "it was removed: use the filesystem of a Sandbox",
}
"""Gone since Modal 1.0 to 1.6; source: semantics.md section 1."""

__all__ = ["Error", "call_graph", "config", "experimental", "types", "__version__", *_HOMES]


def _module(name: str) -> Any:
    return __import__(name, fromlist=("__name__",))  # importlib.import_module would load a package of its own


def _get(name: str) -> Any:
    home = _HOMES.get(name)
    if home is not None:
        value: Any = getattr(_module("cadenza.sdk." + home), name)
    elif name in _MODULES:
        value = _module(_MODULES[name])
    elif name == "Error":
        from cadenza.base.errors import Error as value
    elif name in _REMOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: {_REMOVED[name]}")
    elif name in _UNBUILT:
        from cadenza.base.errors import UnimplementedError

        raise UnimplementedError(f"{name} is not built yet in Cadenza {__version__}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


if not TYPE_CHECKING:
    __getattr__ = _get  # type checkers read the names above, and refuse others


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
