"""What a terminal or a notebook shows while work goes on. Imports nothing of the package.

bars         bars of progress, and a console that lasts when nobody reads it
"""
