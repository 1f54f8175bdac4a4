"""Names of files on other machines, and repositories of the Hugging Face hub. Read `names.py` first.

Imports `errors`.

names        what the user may write: `hub:owner/name@revision`, `owner/name`, an address
repository   some files of a repository of the hub, in its own cache
failures     errors of the hub's libraries as messages

Nothing is fetched that the user did not name, nothing in a fetched file is run, and names that a server gives are
compared with known ones before they become names of files.
"""
