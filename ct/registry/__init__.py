"""Model versions, their files, and the routes that give them traffic."""
