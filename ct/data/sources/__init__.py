"""Where a table's shards come from: one file a kind of source, and the cursor that says how far each was read."""
