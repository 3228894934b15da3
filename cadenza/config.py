"""``import cadenza.config``, as Modal's programs write it: the module `cadenza.sdk.settings` itself."""

import sys

from cadenza.sdk import settings

sys.modules[__name__] = settings
