"""The receiver's gunicorn settings, less the hooks, which need the receiver."""

import runpy
from types import FunctionType

settings = runpy.run_path("gunicorn.conf.py")
globals().update({name: value for name, value in settings.items() if not isinstance(value, FunctionType)})
