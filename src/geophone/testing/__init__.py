"""Contract tests for what plug-ins register: the same that the package runs on its own."""
