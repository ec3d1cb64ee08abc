"""The ready kinds of check, one small class in one file each. A class here with `example()` is found by the contract tests by itself."""
