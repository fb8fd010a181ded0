"""The losses in the trainers that people have: a module for each, which needs its package.

Nothing of the rest of the library imports these, and each imports nothing but its own package.
"""
