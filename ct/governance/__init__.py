"""Who may do what: tokens, their roles, and what is journaled of both."""
