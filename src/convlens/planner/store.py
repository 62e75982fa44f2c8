"""What was measured is remembered: one SQLite file of timings, shared by processes, safe to delete.

The file stores measurements, not choices, so a changed precision class or memory limit needs no new
measurement. A file that cannot be opened, written or understood never stops a computation: the planner
then remembers in memory only.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from convlens.environment import cache_dir

__all__ = ["Measurement", "Store", "default_store"]

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS measurements (
  context TEXT NOT NULL, problem TEXT NOT NULL, kernel TEXT NOT NULL,
  median_us REAL NOT NULL, lower_us REAL NOT NULL, upper_us REAL NOT NULL, repeats INTEGER NOT NULL,
  error REAL NOT NULL,
  PRIMARY KEY (context, problem, kernel)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS machines (context TEXT PRIMARY KEY, gflops REAL NOT NULL, gbytes REAL NOT NULL);
"""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One kernel on one problem: time quartiles in microseconds, and error relative to direct float32."""

    median_us: float
    lower_us: float
    upper_us: float
    repeats: int
    error: float


class Store:
    """Measurements by context and problem. ``path=None`` keeps them in memory only."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._memory: dict[tuple[str, str], dict[str, Measurement]] = {}
        self._machines: dict[str, tuple[float, float]] = {}

    def measurements(self, context: str, problem: str) -> dict[str, Measurement]:
        """What is known about ``problem``, by kernel."""
        known = dict(self._memory.get((context, problem), {}))
        with self._session() as database:
            if database is not None:
                rows = database.execute(
                    "SELECT kernel, median_us, lower_us, upper_us, repeats, error FROM measurements"
                    " WHERE context = ? AND problem = ?",
                    (context, problem),
                )
                for kernel, *figures in rows:
                    known.setdefault(kernel, Measurement(*figures))
        return known

    def remember(self, context: str, problem: str, measured: dict[str, Measurement]) -> None:
        """Add measurements; a newer one replaces an older one of the same kernel."""
        with self._lock:
            self._memory.setdefault((context, problem), {}).update(measured)
        rows = [
            (context, problem, kernel, m.median_us, m.lower_us, m.upper_us, m.repeats, m.error)
            for kernel, m in measured.items()
        ]
        with self._session() as database:
            if database is not None:
                database.executemany("INSERT OR REPLACE INTO measurements VALUES (?,?,?,?,?,?,?,?)", rows)

    def machine(self, context: str) -> tuple[float, float] | None:
        """Peak GFLOP/s and GB/s of ``context`` when they were measured before."""
        if context in self._machines:
            return self._machines[context]
        with self._session() as database:
            if database is not None:
                row = database.execute(
                    "SELECT gflops, gbytes FROM machines WHERE context = ?", (context,)
                ).fetchone()
                return (row[0], row[1]) if row else None
        return None

    def remember_machine(self, context: str, gflops: float, gbytes: float) -> None:
        """Keep the roofline of ``context``."""
        self._machines[context] = (gflops, gbytes)
        with self._session() as database:
            if database is not None:
                database.execute("INSERT OR REPLACE INTO machines VALUES (?,?,?)", (context, gflops, gbytes))

    def clear(self) -> int:
        """Forget everything; returns how many measurements there were on disk."""
        self._memory.clear()
        self._machines.clear()
        with self._session() as database:
            if database is None:
                return 0
            count = int(database.execute("SELECT count(*) FROM measurements").fetchone()[0])
            database.execute("DELETE FROM measurements")
            database.execute("DELETE FROM machines")
            return count

    @contextlib.contextmanager
    def _session(self) -> Iterator[sqlite3.Connection | None]:
        """A connection for one transaction, or None where there is no usable file.

        One connection a transaction: plans are made seldom, and a kept connection must not cross a fork.
        """
        database = self._open() if self.path else None
        if database is None:
            yield None
            return
        try:
            with database:
                yield database
        except sqlite3.Error as error:
            self._give_up(error)
        finally:
            database.close()

    def _open(self) -> sqlite3.Connection | None:
        path = self.path
        if path is None:
            return None
        for attempt in (1, 2):
            database = None
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                database = sqlite3.connect(path, timeout=10)
                version = int(database.execute("PRAGMA user_version").fetchone()[0])
                if version not in (0, _SCHEMA_VERSION):
                    raise sqlite3.DatabaseError(f"schema version {version}")
                if version == 0:
                    database.executescript(_SCHEMA)
                    database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
                    database.commit()
                return database
            except sqlite3.OperationalError as error:
                # read-only folder, full disk, lock held too long: work without the file
                if database is not None:
                    database.close()
                self._give_up(error)
                return None
            except (sqlite3.DatabaseError, OSError) as error:
                if database is not None:
                    database.close()
                if attempt == 2 or isinstance(error, OSError):
                    self._give_up(error)
                    return None
                _log.warning("discarding %s: %s", path, error)
                path.unlink(missing_ok=True)
        return None

    def _give_up(self, error: Exception) -> None:
        _log.warning("plans are remembered in memory only: %s: %s", self.path, error)
        self.path = None


_default: Store | None = None


def default_store() -> Store:
    """The store in the cache folder; opened on first use."""
    global _default
    wanted = cache_dir() / "plans.sqlite"
    if _default is None or (_default.path is not None and _default.path != wanted):
        _default = Store(wanted)
    return _default
