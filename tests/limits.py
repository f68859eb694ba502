"""The app with other limits than it has in production, for `gunicorn tests.limits:app`."""

import json
import os

from app import create_app

app = create_app(json.loads(os.environ["TEST_LIMITS"]))
