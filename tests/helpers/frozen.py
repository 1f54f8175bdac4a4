"""Imported last by the server of processes: what it has imported stays, so that no process that it starts goes through
it when Python collects garbage."""

import gc

gc.freeze()
