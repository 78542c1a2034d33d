-- Model versions, tasks and their rounds. Payloads are files: models/<name>/<number>/, spool/<assignment>.

CREATE TABLE models (
    name       TEXT    NOT NULL,
    number     INTEGER NOT NULL,
    digest     BLOB    NOT NULL,
    size_bytes INTEGER NOT NULL,
    manifest   TEXT    NOT NULL,
    task_id    TEXT,
    round      INTEGER,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (name, number)
) STRICT;

CREATE TABLE tasks (
    id            TEXT    PRIMARY KEY,
    specification TEXT    NOT NULL,
    model         TEXT    NOT NULL,
    state         TEXT    NOT NULL,
    ended         INTEGER NOT NULL,
    created_ms    INTEGER NOT NULL
) STRICT;

-- One running task a lineage, also when two operators ask at once.
CREATE UNIQUE INDEX one_running_task_a_lineage ON tasks (model) WHERE ended = 0;

CREATE TABLE updates (
    assignment   BLOB    PRIMARY KEY,
    task_id      TEXT    NOT NULL,
    round        INTEGER NOT NULL,
    node         TEXT    NOT NULL,
    sha256       BLOB    NOT NULL,
    bytes        INTEGER NOT NULL,
    examples     INTEGER NOT NULL,
    committed_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE rounds (
    task_id    TEXT    NOT NULL,
    round      INTEGER NOT NULL,
    record     TEXT    NOT NULL,
    bytes_up   INTEGER NOT NULL,
    bytes_down INTEGER NOT NULL,
    ended_ms   INTEGER NOT NULL,
    PRIMARY KEY (task_id, round)
) STRICT;

CREATE TABLE refusals (
    task_id TEXT    NOT NULL,
    reason  TEXT    NOT NULL,
    count   INTEGER NOT NULL,
    PRIMARY KEY (task_id, reason)
) STRICT;


-- Elapsed milliseconds that rounds count in; persisted, so that it never runs backward.
CREATE TABLE clock (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    elapsed_ms INTEGER NOT NULL
) STRICT;
INSERT INTO clock (id, elapsed_ms) VALUES (1, 0);
