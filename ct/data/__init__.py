"""Tables, ingest, checks, profiles, the prediction log and labels."""
