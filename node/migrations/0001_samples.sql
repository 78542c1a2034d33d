-- The node's samples. Inputs are raw (unpreprocessed) float32 values, little-endian, one blob a sample.

CREATE TABLE samples (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, -- order of arrival; never used twice
    model TEXT NOT NULL,
    digest BLOB NOT NULL CHECK (length(digest) = 32), -- SHA-256 of the input's bytes
    input BLOB NOT NULL,
    label INTEGER NOT NULL CHECK (label BETWEEN 0 AND 4294967295),
    held_out INTEGER NOT NULL CHECK (held_out IN (0, 1)), -- follows from the digest; kept for the index
    UNIQUE (model, digest)
) STRICT;

CREATE INDEX samples_by_class ON samples (model, label, sequence);
CREATE INDEX samples_by_part ON samples (model, held_out, sequence);

-- How many samples and bytes each class holds, so that bounds and counts need no scan. Triggers keep it right.
CREATE TABLE classes (
    model TEXT NOT NULL,
    label INTEGER NOT NULL,
    held_out INTEGER NOT NULL,
    samples INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (model, label, held_out)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER samples_inserted AFTER INSERT ON samples BEGIN
    INSERT INTO classes (model, label, held_out, samples, bytes)
    VALUES (new.model, new.label, new.held_out, 1, length(new.input))
    ON CONFLICT (model, label, held_out) DO UPDATE SET samples = samples + 1, bytes = bytes + excluded.bytes;
END;

CREATE TRIGGER samples_deleted AFTER DELETE ON samples BEGIN
    UPDATE classes SET samples = samples - 1, bytes = bytes - length(old.input)
    WHERE model = old.model AND label = old.label AND held_out = old.held_out;
END;

CREATE TRIGGER samples_relabelled AFTER UPDATE OF label ON samples WHEN old.label <> new.label BEGIN
    UPDATE classes SET samples = samples - 1, bytes = bytes - length(old.input)
    WHERE model = old.model AND label = old.label AND held_out = old.held_out;
    INSERT INTO classes (model, label, held_out, samples, bytes)
    VALUES (new.model, new.label, new.held_out, 1, length(new.input))
    ON CONFLICT (model, label, held_out) DO UPDATE SET samples = samples + 1, bytes = bytes + excluded.bytes;
END;

-- Inputs of answered requests that wait for a label. A row that was labelled or dropped stays for a while without its
-- input, so that a late label gets the right answer.
CREATE TABLE pending (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
    model TEXT NOT NULL,
    input BLOB NOT NULL,
    bytes INTEGER NOT NULL, -- of the input as it came
    held_out INTEGER NOT NULL CHECK (held_out IN (0, 1)),
    state INTEGER NOT NULL CHECK (state IN (0, 1, 2)), -- 0 waiting, 1 labelled, 2 dropped (expired or pushed out)
    received_ms INTEGER NOT NULL -- on the store's own clock, which runs only while it is open and never backward
) STRICT;

CREATE INDEX pending_by_state ON pending (state, sequence);
