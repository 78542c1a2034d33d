-- The reservoir: of a full class the sample with the greatest key goes. The key is what of the input's SHA-256 the
-- held-out rule does not look at, so that it needs no column and stores from before have it already.
CREATE INDEX samples_by_key ON samples (model, label, substr(digest, 3));

-- How far training has come: samples that arrived later are new to it.
CREATE TABLE trained (
    model TEXT NOT NULL PRIMARY KEY,
    through INTEGER NOT NULL -- greatest sequence that a training has seen
) STRICT, WITHOUT ROWID;
