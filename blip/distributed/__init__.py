"""One process or many: what all of the package uses of it, each function working without a process group.

`group` has the process group, `collectives` the operations in which all processes take part, `exchange`
rows of tensors that travel between them, `sharing` what the main process reads for all, `failures` what they learn
of one that failed, `watch` what ends those that would wait for it, `locks` what keeps processes that do not belong
together out of one another's folders. Imports `errors` and `files`; read `group.py` first.
"""

from blip.distributed.collectives import all_gather, all_reduce, gather_objects, share
from blip.distributed.exchange import fetch_rows, gather_last
from blip.distributed.failures import OtherProcessError, agree, all_reach, from_main, is_first, lost_peer
from blip.distributed.group import barrier, is_main, leave, rank, start, stop, world_size
from blip.distributed.sharing import tensors_from_main

__all__ = [
    "OtherProcessError",
    "agree",
    "all_gather",
    "all_reach",
    "all_reduce",
    "barrier",
    "fetch_rows",
    "from_main",
    "gather_last",
    "gather_objects",
    "is_first",
    "is_main",
    "leave",
    "lost_peer",
    "rank",
    "share",
    "start",
    "stop",
    "tensors_from_main",
    "world_size",
]
