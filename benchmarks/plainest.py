"""The plainest service that registers addresses, for comparison: look, then add through the ORM, then commit."""

from __future__ import annotations

import os
import uuid

from email_validator import EmailNotValidError, validate_email
from flask import Flask, request
from flask.typing import ResponseReturnValue
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import String, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The base of the one model."""


class Registration(Base):
    """One e-mail address."""

    __tablename__ = "registration"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(254), unique=True)
    product_id: Mapped[str] = mapped_column(String(36))


application = Flask(__name__)
application.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DB_CONN_STR"]
db = SQLAlchemy(application, model_class=Base)


@application.post("/api/registration")
def register() -> ResponseReturnValue:
    """Register an e-mail address."""
    email = request.form.get("email", "")
    try:
        email = validate_email(email, check_deliverability=False).normalized
    except EmailNotValidError as error:
        return {"error": str(error)}, 400
    if db.session.execute(select(Registration).filter_by(email=email)).scalar_one_or_none() is not None:
        return {"error": "Already registered."}, 409
    registration = Registration(email=email, product_id=str(uuid.uuid4()))
    db.session.add(registration)
    db.session.commit()
    return {"productId": registration.product_id}, 201
