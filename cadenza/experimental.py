"""``import cadenza.experimental``, as Modal's programs write it: the module `cadenza.sdk.experimental` itself."""

import sys

from cadenza.sdk import experimental

sys.modules[__name__] = experimental
