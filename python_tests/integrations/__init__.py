import python_tests.importable_torchvision  # noqa: F401 - processes that tests start have no conftest
