from one_thread import one_thread as one_thread  # noqa: PLC0414 - a fixture for this folder
from registering import register as register  # noqa: PLC0414
