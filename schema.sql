CREATE SCHEMA IF NOT EXISTS registration CHARACTER SET utf8mb4 COLLATE utf8mb4_bin; USE registration;
-- The line above makes the database. Leave it out where there is one already, as on RDS:
--   tail -n +2 schema.sql | mysql -h HOST -u USER -p DATABASE
-- The result is what the migrations make, and is marked so: `flask db upgrade` goes on from here.

-- One row per e-mail address. email_key is the address in lower case and decides whether two are the same.
CREATE TABLE registration (
    id BIGINT NOT NULL AUTO_INCREMENT,
    product_id BINARY(16) NOT NULL,
    email VARCHAR(254) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    email_key VARCHAR(254) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    status VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    ip_address VARCHAR(45) CHARACTER SET ascii COLLATE ascii_bin,
    created_at DATETIME(6) NOT NULL,
    confirmation_sent_at DATETIME(6),
    PRIMARY KEY (id),
    CONSTRAINT uq_registration_product_id UNIQUE (product_id),
    CONSTRAINT uq_registration_email_key UNIQUE (email_key)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- How many registrations there are up to a remembered id; one row.
CREATE TABLE registration_count (
    id INTEGER NOT NULL,
    up_to_id BIGINT NOT NULL,
    registrations BIGINT NOT NULL,
    PRIMARY KEY (id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

INSERT INTO registration_count (id, up_to_id, registrations) VALUES (1, 0, 0);

-- The versions and distributions that an address reported.
CREATE TABLE installation (
    id BIGINT NOT NULL AUTO_INCREMENT,
    registration_id BIGINT NOT NULL,
    version VARCHAR(64) NOT NULL,
    version_key BIGINT,
    distribution VARCHAR(64) NOT NULL,
    first_seen_at DATETIME(6) NOT NULL,
    last_seen_at DATETIME(6) NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT uq_installation_registration_id_version_distribution UNIQUE (registration_id, version, distribution),
    CONSTRAINT fk_installation_registration_id FOREIGN KEY (registration_id)
        REFERENCES registration (id) ON DELETE CASCADE
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- One row per message to everybody.
CREATE TABLE broadcast (
    id BIGINT NOT NULL AUTO_INCREMENT,
    title VARCHAR(200) NOT NULL,
    contents MEDIUMTEXT NOT NULL,
    status VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    reason VARCHAR(255),
    recipients BIGINT NOT NULL,
    audience_end BIGINT NOT NULL,
    filled_to BIGINT NOT NULL,
    created_at DATETIME(6) NOT NULL,
    resume_at DATETIME(6),
    finished_at DATETIME(6),
    urgent BOOL NOT NULL,
    html MEDIUMTEXT,
    versions VARCHAR(200),
    include_unknown BOOL NOT NULL,
    seen_since DATETIME(6),
    circuit_broken_at DATETIME(6),
    PRIMARY KEY (id),
    KEY ix_broadcast_status (status)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- The ledger: one row per broadcast and recipient.
CREATE TABLE delivery (
    id BIGINT NOT NULL AUTO_INCREMENT,
    broadcast_id BIGINT NOT NULL,
    registration_id BIGINT NOT NULL,
    status VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    attempts SMALLINT NOT NULL,
    lease VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin,
    leased_until DATETIME(6),
    message_id VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin,
    reason VARCHAR(255),
    settled_at DATETIME(6),
    feedback VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin,
    feedback_at DATETIME(6),
    PRIMARY KEY (id),
    CONSTRAINT uq_delivery_broadcast_id_registration_id UNIQUE (broadcast_id, registration_id),
    CONSTRAINT fk_delivery_broadcast_id FOREIGN KEY (broadcast_id) REFERENCES broadcast (id),
    CONSTRAINT fk_delivery_registration_id FOREIGN KEY (registration_id) REFERENCES registration (id),
    KEY ix_delivery_broadcast_id_status_id (broadcast_id, status, id),
    KEY ix_delivery_broadcast_id_feedback (broadcast_id, feedback),
    KEY ix_delivery_message_id (message_id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- What a broadcast was asked for with: its idempotency key, or the fingerprint of what it says.
CREATE TABLE broadcast_request (
    name VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    fingerprint VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    broadcast_id BIGINT NOT NULL,
    created_at DATETIME(6) NOT NULL,
    PRIMARY KEY (name),
    CONSTRAINT fk_broadcast_request_broadcast_id FOREIGN KEY (broadcast_id) REFERENCES broadcast (id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Wrong secret pins of the last quarter of an hour.
CREATE TABLE wrong_pin (
    id BIGINT NOT NULL AUTO_INCREMENT,
    ip_address VARCHAR(45) CHARACTER SET ascii COLLATE ascii_bin,
    created_at DATETIME(6) NOT NULL,
    PRIMARY KEY (id),
    KEY ix_wrong_pin_created_at (created_at)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Broadcasts that bounced for the moment, one after another, at a recipient; a delivery deletes them.
CREATE TABLE soft_bounce (
    registration_id BIGINT NOT NULL,
    broadcast_id BIGINT NOT NULL,
    PRIMARY KEY (registration_id, broadcast_id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Keyed hashes of the addresses that were erased and of their mailboxes, so that nobody but the owner brings them back.
CREATE TABLE erasure (
    key_hash VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    erased_at DATETIME(6) NOT NULL,
    PRIMARY KEY (key_hash)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Confirmation mails that wait to be sent.
CREATE TABLE confirmation_request (
    registration_id BIGINT NOT NULL,
    due_at DATETIME(6) NOT NULL,
    PRIMARY KEY (registration_id),
    INDEX ix_confirmation_request_due_at (due_at)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- When a mailbox, as a keyed hash, last got a confirmation mail, whichever variation of its address was registered;
-- kept for a day.
-- next_id is the registration that gets the next one.
CREATE TABLE confirmation_mail (
    mailbox VARCHAR(254) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    sent_at DATETIME(6) NOT NULL,
    next_id BIGINT,
    PRIMARY KEY (mailbox),
    INDEX ix_confirmation_mail_sent_at (sent_at)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Which variation of a mailbox's address was registered first: with a tag after a plus sign, or at Gmail with dots.
CREATE TABLE variation (
    mailbox VARCHAR(254) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    email_key VARCHAR(254) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    PRIMARY KEY (mailbox)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Events of the mail service; body is kept until the event has had its effect.
CREATE TABLE feedback_event (
    id BIGINT NOT NULL AUTO_INCREMENT,
    event_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    status VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    body MEDIUMTEXT,
    problem VARCHAR(255),
    received_at DATETIME(6) NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT uq_feedback_event_event_id UNIQUE (event_id),
    KEY ix_feedback_event_status_received_at (status, received_at)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- The account's pace, and what the mail service said of the account; one row. Times are seconds since 1970.
CREATE TABLE pace (
    id INTEGER NOT NULL,
    free_at DOUBLE NOT NULL,
    factor DOUBLE NOT NULL,
    throttled_at DOUBLE NOT NULL,
    asked_at DOUBLE NOT NULL,
    granted_rate DOUBLE,
    daily_quota DOUBLE,
    sent_last_day DOUBLE,
    bulk_free_at DOUBLE NOT NULL,
    bulk_probe_at DOUBLE NOT NULL,
    PRIMARY KEY (id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

INSERT INTO pace (id, free_at, factor, throttled_at, asked_at, bulk_free_at, bulk_probe_at)
VALUES (1, 0, 1, 0, 0, 0, 0);

-- Which migration this schema corresponds to.
CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

INSERT INTO alembic_version (version_num) VALUES ('0004');
