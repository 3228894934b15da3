"""``import cadenza.types``, as Modal's programs write it: the module `cadenza.sdk.types` itself."""

import sys

from cadenza.sdk import types

sys.modules[__name__] = types
