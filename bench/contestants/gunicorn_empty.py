"""The receiver's gunicorn settings, less the hooks that need the receiver."""

import runpy

from bench.processes import ROOT

HOOKS = ("on_starting", "post_worker_init", "worker_exit")
settings = runpy.run_path(str(ROOT / "gunicorn.conf.py"))
globals().update({name: value for name, value in settings.items() if name not in HOOKS and not name.startswith("_")})
