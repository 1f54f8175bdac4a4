"""What options are called, what they mean, and how files and command lines set them; knows no task and no model.

It may import `errors` and `files`. `reading`: a configuration's file and overrides, into a typed object. `overrides`:
what is wrong with a value of `--set`. `meanings`: name, type, limits, default, unit and meaning of every option of a
configuration class, read from the comments behind its fields. `tables`: these in a terminal, in Markdown, as JSON; the
verb `blip options` and the documentation use them. `published`: the configurations of salesforce/BLIP. Start with
`reading`.
"""
