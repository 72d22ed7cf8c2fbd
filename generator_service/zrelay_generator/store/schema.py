"""The tables of the database and the migrations of older ones."""

import sqlite3

from zrelay_shared.errors import FailedPrecondition

MIGRATIONS = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
    INSERT INTO meta VALUES ('starts', 0);
    CREATE TABLE jobs (
        arrival INTEGER PRIMARY KEY,
        job_id TEXT NOT NULL UNIQUE,
        request_id TEXT NOT NULL,
        identity TEXT NOT NULL,
        state TEXT NOT NULL,
        detached INTEGER NOT NULL,
        priority INTEGER NOT NULL,
        caller TEXT NOT NULL,
        model TEXT NOT NULL,
        work_s REAL NOT NULL,
        input_bytes INTEGER NOT NULL,
        accepted_at REAL NOT NULL,
        accepted BLOB NOT NULL,
        spec BLOB,
        ended_at REAL NOT NULL DEFAULT 0,
        sequence INTEGER NOT NULL DEFAULT 1,
        error TEXT NOT NULL DEFAULT ''
    );
    CREATE INDEX jobs_by_request ON jobs (request_id, arrival);
    CREATE INDEX jobs_by_state ON jobs (state, arrival);
    CREATE TABLE inputs (arrival INTEGER NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (arrival, sha256)) WITHOUT ROWID;
    CREATE INDEX inputs_by_content ON inputs (sha256);
    CREATE TABLE events (
        arrival INTEGER NOT NULL,
        sequence INTEGER NOT NULL,
        body TEXT NOT NULL,
        sha256 TEXT,
        bytes INTEGER NOT NULL,
        PRIMARY KEY (arrival, sequence)
    ) WITHOUT ROWID;
    CREATE INDEX events_by_content ON events (sha256);
    CREATE TABLE contents (
        sha256 TEXT PRIMARY KEY,
        bytes INTEGER NOT NULL,
        sent INTEGER NOT NULL,
        used_at REAL NOT NULL
    );
    """,
    """
    ALTER TABLE jobs ADD COLUMN accepted_s REAL NOT NULL DEFAULT 0;
    ALTER TABLE jobs ADD COLUMN ended_s REAL NOT NULL DEFAULT 0;
    CREATE TABLE clock (
        number INTEGER PRIMARY KEY CHECK (number = 1),
        clock_s REAL NOT NULL,
        wall_at REAL NOT NULL,
        elapsed_s REAL NOT NULL,
        boot_id TEXT NOT NULL
    );
    """,
    """
    ALTER TABLE jobs ADD COLUMN owner TEXT NOT NULL DEFAULT '';
    DROP INDEX jobs_by_request;
    CREATE INDEX jobs_by_request ON jobs (request_id, owner, arrival);
    CREATE INDEX jobs_by_owner ON jobs (owner, arrival);
    CREATE TABLE senders (
        sha256 TEXT NOT NULL,
        owner TEXT NOT NULL,
        used_at REAL NOT NULL,
        PRIMARY KEY (sha256, owner)
    ) WITHOUT ROWID;
    INSERT INTO senders SELECT sha256, '', used_at FROM contents WHERE sent;
    ALTER TABLE contents RENAME TO contents_before;
    CREATE TABLE contents (sha256 TEXT PRIMARY KEY, bytes INTEGER NOT NULL);
    INSERT INTO contents SELECT sha256, bytes FROM contents_before;
    DROP TABLE contents_before;
    """,
)
"""MIGRATIONS[n] takes a database of version n (`PRAGMA user_version`) to n + 1.

jobs: `state` is unfinished, succeeded, failed or cancelled; `accepted` is a serialized JobAccepted; `spec` is the
serialized GenerationSpec with contents by name, NULL once the job is over; `error` is JSON; `owner` is who may see the
job, '' for every network address. inputs: contents that an unfinished job needs. events: results; `body` is JSON,
`sha256` and `bytes` are those of the file that belongs to it. contents: what is on disk. senders: who sent a content
(kept while there is room) and may name it; results, which are kept as long as their job, have none. `used_at` is in
seconds of the store's clock, as `accepted_s` and `ended_s` of jobs are. clock: one row, see `clock.py`.
"""


def prepare(db: sqlite3.Connection) -> int:
    """Migrates the tables and counts this start.

    Returns:
        The number of starts, this one included.

    Raises:
        FailedPrecondition: A newer zrelay wrote the tables (STATE_NEWER).
        sqlite3.DatabaseError: The file is not a database.
    """
    for pragma in ("auto_vacuum=INCREMENTAL", "journal_mode=WAL", "synchronous=FULL", "journal_size_limit=16777216"):
        db.execute(f"PRAGMA {pragma}")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise FailedPrecondition(
            f"the jobs in this state folder were written by a newer zrelay (tables of version {version}, this one "
            f"knows {len(MIGRATIONS)}): start that one, or name another folder with --state",
            reason="STATE_NEWER",
        )
    for number in range(version, len(MIGRATIONS)):
        db.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")
    db.execute("UPDATE meta SET value = value + 1 WHERE name = 'starts'")
    (starts,) = db.execute("SELECT value FROM meta WHERE name = 'starts'").fetchone()
    return int(starts)
