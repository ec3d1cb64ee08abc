"""The journal, the artifacts and the lineage."""
