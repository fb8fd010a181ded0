"""The native libraries: loading them, and choosing between them and the reference."""
