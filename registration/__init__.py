"""OpenEMR Product Registration: the only module that sees everything, and puts it together."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from alembic.script import ScriptDirectory
from flask import Flask
from flask_migrate import Migrate
from sqlalchemy.engine import make_url
from sqlalchemy.orm import sessionmaker
from werkzeug.middleware.proxy_fix import ProxyFix

import logger
from config import WEB_THREADS, Config

from .db import AUTOCOMMIT, db, engine_options, fail_fast
from .mailers import Mailer
from .mailers.outbox import OutboxMailer
from .mailers.ses import SesMailer, make_client
from .sender import Sender
from .web import api, errors, health, request_log

LARGEST_BODY = 512 * 1024
MIGRATIONS = Path(__file__).parent / "migrations"
ROOT = Path(__file__).parent.parent
"""Where relative paths in the settings begin, wherever the service was started."""


def create_application(config: Config) -> Flask:
    """Build the WSGI application."""
    logger.configure(ROOT / config.LOG_FILE, readable=config.DEVELOPMENT)
    application = Flask(__name__, instance_path=str(ROOT), static_folder=None)
    application.url_map.merge_slashes = False
    application.json.sort_keys = False  # type: ignore[attr-defined]
    application.config.from_object(config)
    application.config.update(
        MAX_CONTENT_LENGTH=LARGEST_BODY,
        MAX_FORM_MEMORY_SIZE=LARGEST_BODY,
        SQLALCHEMY_ENGINE_OPTIONS=engine_options(config.DB_CONN_STR, pool_size=WEB_THREADS),
        SQLALCHEMY_BINDS={
            AUTOCOMMIT: engine_options(config.DB_CONN_STR, pool_size=WEB_THREADS, autocommit=True),
        },
    )
    if (file := make_url(config.DB_CONN_STR).database) and config.DB_CONN_STR.startswith("sqlite"):
        (ROOT / file).parent.mkdir(parents=True, exist_ok=True)
    db.init_app(application)
    if not config.DB_CONN_STR.startswith("sqlite"):
        with application.app_context():
            for engine in db.engines.values():
                fail_fast(engine)
    Migrate(application, db, directory=str(MIGRATIONS))
    application.extensions["schema_heads"] = ScriptDirectory(str(MIGRATIONS)).get_heads()
    request_log.init_app(application)
    errors.init_app(application)
    for module in (api, health):
        application.register_blueprint(module.bp)
    if config.TRUSTED_PROXIES:
        application.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            application.wsgi_app, x_for=config.TRUSTED_PROXIES
        )
    return application


def create_sender(application: Flask) -> Sender:
    """Build what sends the broadcasts of this application."""
    settings = application.config
    with application.app_context():
        sessions = sessionmaker(db.engine)
    return Sender(
        sessions=sessions,
        mailer=_create_mailer(settings),
        sending_rate=settings["SENDING_RATE"],
        ip_retention=timedelta(days=settings["IP_RETENTION_DAYS"]),
    )


def _create_mailer(settings: Mapping[str, Any]) -> Mailer:
    if settings["MAILER"] == "outbox":
        return OutboxMailer(ROOT / settings["OUTBOX_DIRECTORY"], settings["SES_SENDER"])
    client = make_client(settings["SES_REGION"], settings["AWS_ACCESS_ID"], settings["AWS_SECRET_KEY"])
    return SesMailer(client, settings["SES_SENDER"], settings["SES_CONFIGURATION_SET"])
