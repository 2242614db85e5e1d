"""A POST that only answers: what Flask and gunicorn cost before a registration does anything."""

from __future__ import annotations

from flask import Flask
from flask.typing import ResponseReturnValue

application = Flask(__name__)


@application.post("/api/registration")
def register() -> ResponseReturnValue:
    """Answer as a registration does."""
    return {"productId": "00000000-0000-4000-8000-000000000000"}, 201
