"""Files of other machines: from repositories of the Hugging Face hub, and from addresses. Read `names.py` first.

Imports `errors` and `files`.

names        what the user may write: `hub:owner/name@revision`, `owner/name`, an address
repository   some files of a repository of the hub, in its own cache
download     one file of an address, in the cache of this package, continued where it was interrupted
exchange     one request for such a file, and what its answer has to be

Nothing is fetched that the user did not name, nothing in a fetched file is run, and names that a server gives are
compared with known ones before they become names of files.
"""
