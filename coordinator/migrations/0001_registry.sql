-- Join tokens and issued certificates. Times are seconds since 1970, wall clock.

CREATE TABLE tokens (
    id            TEXT    NOT NULL PRIMARY KEY,
    -- SHA-256 of the secret: 256 random bits need no slow hash.
    secret_sha256 BLOB    NOT NULL,
    spiffe_id     TEXT    NOT NULL,
    -- Names of the certificate, one a line.
    host_names    TEXT    NOT NULL,
    expires_at    INTEGER NOT NULL,
    -- SHA-256 of the public key that redeemed it.
    redeemed_by   BLOB
) STRICT;

CREATE TABLE certificates (
    -- SHA-256 of the certificate.
    fingerprint BLOB    NOT NULL PRIMARY KEY,
    serial      TEXT    NOT NULL UNIQUE,
    spiffe_id   TEXT    NOT NULL,
    not_after   INTEGER NOT NULL,
    revoked_at  INTEGER
) STRICT;

CREATE INDEX certificates_by_identity ON certificates (spiffe_id);
