"""What a generator's state folder holds when nothing is under way: only what its retention allows."""

import sqlite3
from pathlib import Path

from zrelay_generator.store.opening import DATABASE


def residue(state: Path, keep_results: int) -> tuple[str, list[str]]:
    """What is there, and sentences about what should not be. The generator runs and is idle."""
    wrong = []
    database = state / DATABASE
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as db:
        count = {name: _count(db, f"SELECT count(*) FROM {name}") for name in ("jobs", "events", "inputs", "contents")}
        unfinished = _count(db, "SELECT count(*) FROM jobs WHERE state = 'unfinished'")
        orphans = _count(db, "SELECT count(*) FROM events WHERE arrival NOT IN (SELECT arrival FROM jobs)")
        lost = _count(
            db,
            "SELECT count(*) FROM contents WHERE sha256 NOT IN (SELECT sha256 FROM senders) "
            "AND sha256 NOT IN (SELECT sha256 FROM events WHERE sha256 IS NOT NULL)",
        )
        named = {row[0] for row in db.execute("SELECT sha256 FROM contents")}
        specs = _count(db, "SELECT count(*) FROM jobs WHERE spec IS NOT NULL")
    db.close()
    files = {path.name for path in (state / "blobs").iterdir()}
    for what, found in (
        ("unfinished jobs", unfinished),
        ("inputs of unfinished jobs", count["inputs"]),
        ("specs of ended jobs", specs),
        ("events of jobs that are gone", orphans),
        ("contents that no job made and nobody sent", lost),
        ("files without a row", len(files - named)),
        ("rows without a file", len(named - files)),
    ):
        if found:
            wrong.append(f"{found} {what}")
    if count["jobs"] > keep_results:
        wrong.append(f"{count['jobs']} ended jobs, {keep_results} are to be kept")
    told = ", ".join(f"{number} {name}" for name, number in count.items())
    return f"{told}, {len(files)} files, {database.stat().st_size / 2**20:.1f} MiB of rows", wrong


def _count(db: sqlite3.Connection, query: str) -> int:
    return int(db.execute(query).fetchone()[0])
