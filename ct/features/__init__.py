"""What a user declares as features, how feature sets are built, encoded and served."""
