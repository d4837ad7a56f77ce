"""Settings that Ray reads when it is first imported; so this comes before it.

Ray configs import Ray, too: whoever runs one has imported this module.
"""

import os
import sys

SETTINGS = {
    "RAY_AUTH_MODE": "token",  # whoever has no token of ours is refused
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # `search.check` looks before the start
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # nobody reads Ray's record
}
if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
    SETTINGS["RAY_COLOR_PREFIX"] = "0"
for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)
