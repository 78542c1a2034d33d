-- Small updates lie in their row until their round closes; larger ones are files of the spool.
ALTER TABLE updates ADD COLUMN payload BLOB;
