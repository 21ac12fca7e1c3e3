from registering import register as register  # noqa: PLC0414 - a fixture for this folder
