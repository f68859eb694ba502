"""An empty route: what Flask and gunicorn cost by themselves."""

from flask import Flask, Response

app = Flask(__name__, static_folder=None)


@app.post("/webhooks/status-update")
def status_update() -> Response:
    return Response("OK", mimetype="text/plain")
