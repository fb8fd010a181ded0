import python_tests.importable_trainers  # noqa: F401 - processes that tests start have no conftest
