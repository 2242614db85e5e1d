"""The barest service that registers addresses: check, one INSERT that commits itself, answer, and nothing else.

No log, no limits, no headers, no reports of installations. What it reaches is what Flask, SQLAlchemy Core, PyMySQL and
gunicorn's threads let any service reach.
"""

from __future__ import annotations

import os
import uuid

from email_validator import EmailNotValidError, validate_email
from flask import Flask, request
from flask.typing import ResponseReturnValue
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, insert
from sqlalchemy.exc import IntegrityError

from config import WEB_THREADS

REGISTRATION = Table(
    "registration",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("email", String(254)),
    Column("product_id", String(36)),
)
INSERT = insert(REGISTRATION)

application = Flask(__name__)
engine = create_engine(
    os.environ["DB_CONN_STR"],
    isolation_level="AUTOCOMMIT",
    pool_size=WEB_THREADS,
    max_overflow=0,
    pool_reset_on_return=None,
)


@application.post("/api/registration")
def register() -> ResponseReturnValue:
    """Register an e-mail address."""
    try:
        email = validate_email(request.form.get("email", ""), check_deliverability=False).normalized
    except EmailNotValidError as error:
        return {"error": str(error)}, 400
    product_id = str(uuid.uuid4())
    try:
        with engine.connect() as connection:
            connection.execute(INSERT, {"email": email, "product_id": product_id})
    except IntegrityError:
        return {"error": "Already registered."}, 409
    return {"productId": product_id}, 201
