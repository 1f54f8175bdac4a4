"""What the package knows of devices: how much work to hand over at once, which number formats, which cards there are.

May import nothing of the package but `errors`. Modules: `precision`, `processor`, `profile`.
"""
