"""The families of operations that are measured."""
